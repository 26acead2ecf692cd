# ResCLIP on a CPU. Written for Docker 23 or later; it has not been built where this project is developed.
#   docker build --tag resclip .
#   docker run --rm --volume "$PWD:/data" --volume resclip:/cache resclip segment photos --classes "sky; tree" --out labels
FROM python:3.11-slim

# The index of PyTorch's builds for CPUs alone, as pytorch.org/get-started/locally names it. Empty: the usual index, whose
# builds for Linux bring CUDA along.
ARG TORCH_INDEX=""

WORKDIR /source
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.9"
COPY setup.py pyproject.toml MANIFEST.in README.md LICENSE ./
COPY resclip resclip
COPY resclip_kernels resclip_kernels
RUN pip install --no-cache-dir ".[batch,export,formats,geo,heif,hf,video]"

ENV HF_HOME=/cache/huggingface RESCLIP_CACHE=/cache/resclip
RUN useradd --create-home resclip && mkdir -p /cache /data && chown resclip /cache /data
USER resclip
VOLUME /cache
WORKDIR /data
ENTRYPOINT ["resclip"]
CMD ["--help"]
