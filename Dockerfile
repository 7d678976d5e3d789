# CPU:    docker build -t pancseg .
# NVIDIA: docker build -t pancseg --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# Run:    docker run --rm --gpus all --shm-size 2g -v $PWD:/data pancseg pancseg.train data.root=prepared
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /opt/pancseg
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY conf conf
COPY pancseg pancseg
RUN pip install --no-cache-dir --constraint constraints.txt --index-url "$TORCH_INDEX" torch==2.13.0 \
 && pip install --no-cache-dir --constraint constraints.txt '.[export,slurm,sweep]'
WORKDIR /data
ENTRYPOINT ["python", "-m"]
CMD ["pancseg.doctor"]
