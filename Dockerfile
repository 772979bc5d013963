# The service in an image: nobody in particular runs it, and there is no secret in it.
#
#   docker build -t jobengine .
#   docker run --init -p 127.0.0.1:8080:8080 -v jobengine:/var/lib/jobengine \
#     -e JOBENGINE_ISSUER=http://localhost:8080 jobengine
#
# docs/operations.md tells the rest; compose.yaml runs it beside a PostgreSQL.

FROM python:3.11-slim-bookworm AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1

WORKDIR /build
RUN python -m venv /opt/jobengine

# First what changes seldom: the locked versions, each held against its hash.
COPY requirements-serve.lock ./
RUN /opt/jobengine/bin/pip install --require-hashes --only-binary=:all: -r requirements-serve.lock

# What makes the wheel is locked too, and stays behind in this stage.
COPY requirements-build.lock ./
RUN pip install --require-hashes --only-binary=:all: -r requirements-build.lock

COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip wheel --no-deps --no-build-isolation --wheel-dir wheel . \
    && /opt/jobengine/bin/pip install --no-deps --no-index wheel/jobengine-*.whl


FROM python:3.11-slim-bookworm

# A number, so that whoever starts the image can see that it is not root; the folder is its own from the beginning.
RUN groupadd --system --gid 10001 jobengine \
    && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/jobengine --shell /usr/sbin/nologin jobengine \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/jobengine

COPY --from=build /opt/jobengine /opt/jobengine

ENV PATH=/opt/jobengine/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    JOBENGINE_DATA_DIR=/var/lib/jobengine \
    JOBENGINE_HOST=0.0.0.0 \
    JOBENGINE_PORT=8080

USER 10001:10001
WORKDIR /var/lib/jobengine
VOLUME ["/var/lib/jobengine"]
EXPOSE 8080
STOPSIGNAL SIGTERM

HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['JOBENGINE_PORT']), timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]

ENTRYPOINT ["jobengine"]
CMD ["serve"]
