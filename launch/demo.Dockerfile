# The page of `coltran demo`, for a CPU; for a GPU, take CUDA's JAX as launch/colorize.Dockerfile tells.
#
#   docker build -f launch/demo.Dockerfile -t coltran-demo .
#   docker run --rm -p 127.0.0.1:7860:7860 coltran-demo
FROM python:3.12-slim
WORKDIR /coltran
COPY pyproject.toml README.md LICENSE ./
COPY coltran_jax ./coltran_jax
RUN pip install --no-cache-dir '.[demo,archive]'
# A page that strangers reach has no rights.
RUN useradd --create-home visitor
USER visitor
EXPOSE 7860
ENTRYPOINT ["coltran", "demo", "--host", "0.0.0.0"]
