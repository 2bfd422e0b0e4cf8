# syntax=docker/dockerfile:1
# The command `brain-ct-to-mri` in a container; how to build and run it: docs/containers.md.
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS wheel
WORKDIR /source
RUN pip install --no-cache-dir hatchling==1.33.0
COPY . .
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM python:${PYTHON} AS environment
# PyTorch for the CPU; for NVIDIA GPUs https://pypi.org/simple, whose PyTorch brings CUDA
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements.txt /constraints.txt
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple \
        "$(grep -o '^torch==[0-9.]*' /constraints.txt)"
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --constraint /constraints.txt /wheels/*.whl

FROM python:${PYTHON}
LABEL org.opencontainers.image.title="Brain CT to MRI" \
      org.opencontainers.image.description="Synthetic T1-weighted MRI from brain CT; for research, not for diagnosis" \
      org.opencontainers.image.licenses="Apache-2.0 AND LicenseRef-brain-ct-to-mri-weights"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin brain
COPY --from=environment /opt/venv /opt/venv
# any user id may run it, and the root file system may be read-only: all that is kept beside results goes below /tmp
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["brain-ct-to-mri"]
CMD ["--help"]
