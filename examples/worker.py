"""A worker in Python's own library alone: claims batches of the job type in argv[1] and counts their days."""

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

URL, TENANT = os.environ["JOBENGINE_URL"], os.environ["JOBENGINE_TENANT"]
CLIENT = f"{os.environ['JOBENGINE_CLIENT_ID']}:{os.environ['JOBENGINE_CLIENT_SECRET']}"


def send(path, body, kind, authorization):
    headers = {"Content-Type": kind, "Authorization": authorization}
    with urllib.request.urlopen(urllib.request.Request(URL + path, body, headers), timeout=30) as answer:
        return json.loads(answer.read() or b"null")


def token():
    form = {"grant_type": "client_credentials", "scope": "orch:execute", "tenant": TENANT}
    basic = "Basic " + base64.b64encode(CLIENT.encode()).decode()
    return send("/oauth2/token", urllib.parse.urlencode(form).encode(), "application/x-www-form-urlencoded", basic)


def call(path, **body):
    return send(f"/api/v1/batches/{path}", json.dumps(body).encode(), "application/json", f"Bearer {BEARER}")


while True:
    BEARER = token()["access_token"]  # good for 15 minutes; a batch that takes longer asks again
    for batch in call("claim", job_types=[sys.argv[1]], max=8)["batches"] or [time.sleep(1)]:
        if batch:
            path, held = batch["batch_id"], {"fencing_token": batch["fencing_token"]}
            fresh = call(f"{path}/events/claim", keys=[batch["window"]["start"]], **held)["fresh"]
            call(f"{path}/heartbeat", checkpoint={"done": fresh}, **held)  # every five seconds in a longer batch
            call(f"{path}/complete", events={"processed": len(fresh)}, **held)
            print("done", batch["window"]["start"], flush=True)
