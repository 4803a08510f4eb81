# CPU:    docker build -t ipb .
# NVIDIA: docker build -t ipb-cuda --build-arg TORCH=cu130 .     (run with --gpus all)
# JupyterLab:  docker run --rm -p 8888:8888 -v "$PWD:/work" ipb
# a command:   docker run --rm -v "$PWD:/work" ipb ipb detect raw cells
FROM python:3.12-slim

# which build of PyTorch: cpu, or the CUDA of your driver
ARG TORCH=cpu

RUN useradd --create-home --uid 1000 ipb && mkdir /work && chown ipb /work

# torch and torchvision change rarely and are large: a layer of their own
RUN pip install --no-cache-dir torch torchvision --index-url "https://download.pytorch.org/whl/${TORCH}"

COPY settings.ini setup.py pyproject.toml README.md LICENSE MANIFEST.in constraints.txt /src/
COPY ipb_nb /src/ipb_nb
COPY nbs/experiments /src/nbs/experiments
COPY configs /src/configs
RUN pip install --no-cache-dir /src jupyterlab && rm -rf /src

USER ipb
WORKDIR /work
EXPOSE 8888
# the address with its token is in the output
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser"]
