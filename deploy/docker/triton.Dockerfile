# NVIDIA's Triton with the light client, which two of a bundle's models run (image_preprocess, tokenize).
#   docker build -f deploy/docker/triton.Dockerfile -t cirrus-triton .
ARG RELEASE=26.08
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY export export
COPY bench bench
COPY triton_models triton_models
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM nvcr.io/nvidia/tritonserver:${RELEASE}-py3
COPY --from=build /wheels /wheels
# Ubuntu's Python is the one that Triton's backend runs
ENV PIP_BREAK_SYSTEM_PACKAGES=1
RUN pip install --no-cache-dir /wheels/*.whl && rm -r /wheels
USER 1000:1000
ENV XDG_CACHE_HOME=/tmp/cache
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["curl", "--fail", "--silent", "http://127.0.0.1:8000/v2/health/ready"]
CMD ["tritonserver", "--model-repository=/models", "--disable-auto-complete-config", "--cache-config=local,size=268435456"]
