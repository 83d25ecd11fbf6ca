# docker build -t brainseg .                             for a CPU; --build-arg TORCH=cu130 or cu126 for an NVIDIA GPU
# docker run --rm -v "$PWD:/work" brainseg train         with --gpus all to use the GPU
FROM python:3.11-slim
ARG TORCH=cpu
WORKDIR /opt/brainseg
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY brainseg brainseg
COPY conf conf
RUN pip install --no-cache-dir --constraint constraints.txt ".[all]" "torch==$(sed -n 's/^torch==//p' constraints.txt)+$TORCH" \
    --extra-index-url "https://download.pytorch.org/whl/$TORCH"
WORKDIR /work
ENTRYPOINT ["brainseg"]
