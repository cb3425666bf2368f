FROM python:3.11.14-slim-bookworm AS build

WORKDIR /src
RUN python -m venv /opt/ct-stream
COPY constraints-runtime.txt ./
# Nothing is installed that is not pinned there by its hash, and nothing is compiled.
RUN /opt/ct-stream/bin/pip install --no-cache-dir --no-deps --only-binary :all: \
        --require-hashes --requirement constraints-runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY ct_stream ct_stream
# setuptools builds the package; it and pip are not needed to run it.
RUN /opt/ct-stream/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/ct-stream/bin/pip uninstall --yes setuptools pip


FROM python:3.11.14-slim-bookworm

RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin ct-stream
COPY --from=build /opt/ct-stream /opt/ct-stream
ENV PATH=/opt/ct-stream/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
USER ct-stream
# Alive, not ready: a worker that waits for Kafka or Postgres must not be restarted. Why it waits: /readyz.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:6066/livez', timeout=4)"]
CMD ["ct-stream", "worker"]
