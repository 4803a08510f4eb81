# CPU:    docker build -t ipb .
# NVIDIA: docker build -t ipb-cuda --build-arg TORCH=cu130 .     (run with --gpus all)
# JupyterLab:  docker run --rm -p 8888:8888 -v "$PWD:/work" ipb
# a command:   docker run --rm -v "$PWD:/work" ipb ipb detect raw cells
FROM python:3.12-slim

# which build of PyTorch: cpu, or the CUDA of your driver
ARG TORCH=cpu

RUN useradd --create-home --uid 1000 ipb && mkdir /work && chown ipb /work

# torch and torchvision, as tested, change rarely and are large: a layer of their own
COPY constraints.txt /src/
RUN grep -E '^torch(vision)?==' /src/constraints.txt > /src/torch.txt \
    && pip install --no-cache-dir -r /src/torch.txt --index-url "https://download.pytorch.org/whl/${TORCH}"

COPY settings.ini setup.py pyproject.toml README.md LICENSE MANIFEST.in /src/
COPY ipb_nb /src/ipb_nb
COPY nbs/experiments /src/nbs/experiments
COPY configs /src/configs
# all else as tested, but for what came with PyTorch (the pins are in a file, which the linter does not read)
# hadolint ignore=DL3013
RUN grep -Ev '^(torch|triton|nvidia|cuda)' /src/constraints.txt > /src/pins.txt \
    && pip install --no-cache-dir -c /src/pins.txt /src jupyterlab \
    && rm -rf /src

USER ipb
WORKDIR /work
EXPOSE 8888
# the address with its token is in the output
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser"]
