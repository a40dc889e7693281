# The search service without an encoder of its own: it asks a Triton server, or encodes on the CPU with EXTRAS=cpu,service,otel,sources.
#   docker build -f deploy/docker/service.Dockerfile -t cirrus-search .
FROM python:3.12-slim-bookworm AS build
ARG EXTRAS=service,otel,sources
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY client client
COPY export export
COPY bench bench
COPY triton_models triton_models
RUN python -m venv /opt/cirrus \
    && /opt/cirrus/bin/pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"

FROM python:3.12-slim-bookworm
COPY --from=build /opt/cirrus /opt/cirrus
RUN useradd --uid 1000 --no-create-home --shell /usr/sbin/nologin cirrus
USER 1000:1000
ENV PATH=/opt/cirrus/bin:$PATH \
    XDG_CACHE_HOME=/tmp/cache \
    CIRRUS_SERVE_HOST=0.0.0.0 \
    CIRRUS_SERVE_PORT=8080 \
    CIRRUS_SERVE_INDEX=/data/index \
    CIRRUS_SERVE_LOG_FORMAT=json
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
ENTRYPOINT ["cirrus"]
CMD ["serve", "/data/bundle"]
