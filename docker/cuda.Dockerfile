# ResCLIP on NVIDIA's GPUs. It has not been built where this project is developed.
#   docker build --tag resclip-cuda --file docker/cuda.Dockerfile .
#   docker run --rm --gpus all --volume "$PWD:/data" --volume resclip:/cache resclip-cuda doctor
# PyTorch's usual builds for Linux hold CUDA's libraries; of the host only the driver and its container toolkit are needed.
FROM python:3.11-slim

# Triton compiles the stub of each kernel's launch by a C compiler.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

WORKDIR /source
RUN pip install --no-cache-dir "torch>=2.9"
COPY setup.py pyproject.toml MANIFEST.in README.md LICENSE ./
COPY resclip resclip
COPY resclip_kernels resclip_kernels
RUN pip install --no-cache-dir ".[batch,export,formats,geo,heif,hf,video]"

ENV HF_HOME=/cache/huggingface RESCLIP_CACHE=/cache/resclip TRITON_CACHE_DIR=/cache/triton
RUN useradd --create-home resclip && mkdir -p /cache /data && chown resclip /cache /data
USER resclip
VOLUME /cache
WORKDIR /data
ENTRYPOINT ["resclip"]
CMD ["--help"]
