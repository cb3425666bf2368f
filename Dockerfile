FROM python:3.11.14-slim-bookworm AS build

# 26.3 takes the hashes of a constraints file for what a hashed requirement needs; 25.3 does not.
RUN pip install --no-cache-dir pip==26.3
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY ct_stream ct_stream
RUN pip wheel --no-deps --wheel-dir /wheels .
# The wheel's own hash puts pip into --require-hashes mode: nothing is installed that constraints.txt does not pin.
RUN python -m venv --without-pip /opt/ct-stream \
    && wheel="$(ls /wheels/ct_stream-*.whl)" \
    && echo "ct-stream @ file://$wheel --hash=sha256:$(sha256sum "$wheel" | cut -d ' ' -f 1)" > /wheels/requirements.txt \
    && pip --python /opt/ct-stream/bin/python install --no-cache-dir --only-binary :all: \
        --constraint constraints.txt --requirement /wheels/requirements.txt


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
