# The page of `coltran demo`, for a CPU; for a GPU, take CUDA's JAX as launch/colorize.Dockerfile tells.
#
#   docker build -f launch/demo.Dockerfile -t coltran-demo .
#   docker run --rm -p 127.0.0.1:7860:7860 coltran-demo
FROM python:3.12-slim
WORKDIR /coltran
COPY pyproject.toml README.md LICENSE ./
COPY coltran_jax ./coltran_jax
# pyproject.toml says which versions. A page that strangers reach has no rights; Kubernetes knows that a user is not root
# by its number.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[demo,archive]' && useradd --create-home --uid 1000 visitor
USER 1000
EXPOSE 7860
ENTRYPOINT ["coltran", "demo", "--host", "0.0.0.0"]
