# progeo on a CPU:
#   docker build --tag progeo .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/data" progeo localize photo.jpg --index city.index
#   docker run --rm --volume "$PWD:/data" --publish 8000:8000 --env PROGEO_TOKEN progeo serve --index city.index \
#       --host 0.0.0.0
# While an image is built there is no GPU, so that conda-forge gives the small builds of PyTorch and faiss for a CPU.
FROM mambaorg/micromamba:2-debian12-slim

COPY environment.yml /tmp/environment.yml
RUN micromamba install --yes --name base --file /tmp/environment.yml \
        fastapi uvicorn python-multipart prometheus_client \
    && micromamba clean --all --yes

ARG MAMBA_DOCKERFILE_ACTIVATE=1
COPY --chown=$MAMBA_USER:$MAMBA_USER setup.cfg pyproject.toml README.md LICENSE /tmp/progeo/
COPY --chown=$MAMBA_USER:$MAMBA_USER progeo /tmp/progeo/progeo
RUN pip install --no-cache-dir --no-deps /tmp/progeo && rm -r /tmp/progeo

# A home that any user may write to, for caches of weights
ENV HOME=/tmp
WORKDIR /data
ENTRYPOINT ["/usr/local/bin/_entrypoint.sh", "progeo"]
