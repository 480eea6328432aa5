# The server on the CPU. Never built where the library was made: see docs/status.md.
#
#   docker build -t coupled-sampling .
#   docker run --rm -p 127.0.0.1:8000:8000 coupled-sampling
#   docker run --rm -p 127.0.0.1:8000:8000 -v ./FOLDER:/model:ro coupled-sampling serve /model --host 0.0.0.0
FROM python:3.12-slim

COPY . /source
RUN pip install --no-cache-dir "/source[serve,grammar]" && rm -rf /source

RUN useradd --create-home server
USER server
WORKDIR /home/server
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/live')"]
ENTRYPOINT ["coupled-sampling"]
CMD ["serve", "fashion", "--host", "0.0.0.0"]
