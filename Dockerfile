# One image for every service: the command chooses, as in `docker run IMAGE serve ocsp --config …`.
#
#   docker build -t lakthan .             # or: buildah bud -t lakthan .
#   docker run --rm IMAGE --help
#
# The base is any image with glibc, Python 3.11 or newer and its venv module; both stages use the same one. What is
# installed is what uv.lock names, each file checked against its hash. The final image has neither pip nor a compiler.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
WORKDIR /build
# The tools that build, in an environment that stays behind.
COPY run uv.lock ./
RUN python3 -m venv /tools \
 && python3 run requirements build > build.txt \
 && /tools/bin/pip install --no-cache-dir --no-deps --require-hashes -r build.txt
# What runs. This layer changes only with uv.lock.
RUN python3 run requirements > runtime.txt \
 && python3 -m venv --without-pip /opt/lakthan \
 && /tools/bin/pip --python /opt/lakthan/bin/python install --no-cache-dir --no-deps --require-hashes -r runtime.txt
COPY . .
RUN /tools/bin/python -m hatchling build --target wheel --directory dist \
 && /tools/bin/pip --python /opt/lakthan/bin/python install --no-cache-dir --no-deps --no-index dist/*.whl
# What is in the image, Debian's packages included, as CycloneDX.
RUN /tools/bin/python image/sbom.py /opt/lakthan > /opt/lakthan/sbom.cdx.json

FROM ${BASE_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Lakthan" \
      org.opencontainers.image.description="OCSP responder (RFC 6960), time-stamp authority (RFC 3161) and registry" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# A user with a name, because PostgreSQL of the demo asks for one; its home is the only folder that anything writes to.
# What the base brings to install packages with goes.
RUN echo "lakthan:x:10001:10001:Lakthan:/var/lib/lakthan:/usr/sbin/nologin" >> /etc/passwd \
 && echo "lakthan:x:10001:" >> /etc/group \
 && mkdir --mode=0700 /var/lib/lakthan && chown 10001:10001 /var/lib/lakthan \
 && rm -rf /usr/local/bin/pip* /usr/local/lib/python3*/site-packages/pip* /usr/local/lib/python3*/ensurepip \
           /usr/lib/python3*/ensurepip /usr/share/python-wheels
COPY --from=build /opt/lakthan /opt/lakthan
ENV PATH=/opt/lakthan/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /var/lib/lakthan
USER 10001:10001
# Public ports of the services, and their admin ports: OCSP, time stamps, registry.
EXPOSE 6960 6961 3161 3162 8443 8444
ENTRYPOINT ["lakthan"]
CMD ["--help"]
