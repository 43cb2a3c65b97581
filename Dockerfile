FROM python:3.11-slim
WORKDIR /opt/k2
COPY pyproject.toml constraints.txt README.md ./
COPY k2 k2
COPY agents agents
COPY tables tables
RUN pip install --no-cache-dir -c constraints.txt . \
    && useradd --create-home k2 && install -d -o k2 /data
USER k2
ENV K2_DATA=/data
VOLUME /data
EXPOSE 6066
CMD ["k2", "up"]
