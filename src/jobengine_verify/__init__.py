"""Check an audit export without the service that made it: standard library and `cryptography`, nothing else.

The format is docs/ledger.md. Nothing here is shared with the service, so that a mistake has to be made twice.
"""
