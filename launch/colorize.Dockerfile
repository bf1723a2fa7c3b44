# Colorizing alone, small and without root: no TensorFlow.
#
#   docker build -f launch/colorize.Dockerfile -t coltran-colorize .
#   docker run --rm -v "$PWD:/images" coltran-colorize /images/photo.jpg --output /images/colorized
#
# For NVIDIA GPUs build with --build-arg EXTRA=[gpu], and run with --gpus all.
FROM python:3.12-slim
ARG EXTRA=
WORKDIR /coltran
COPY pyproject.toml README.md LICENSE ./
COPY coltran_jax coltran_jax
# pyproject.toml says which versions. Kubernetes knows that a user is not root by its number.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".${EXTRA}" && useradd --create-home --uid 1000 coltran
USER 1000
WORKDIR /home/coltran
ENTRYPOINT ["python", "-m", "coltran_jax", "colorize"]
CMD ["--help"]
