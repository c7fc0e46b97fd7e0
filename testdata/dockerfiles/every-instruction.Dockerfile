# syntax=docker/dockerfile:1
# check=skip=ReservedStageName

# What the front end can read, one of each. Built by nobody.
ARG VERSION=1.2
ARG IMAGE="registry.example:5000/base:${VERSION}" EXTRA

FROM --platform=$BUILDPLATFORM ${IMAGE} AS build
MAINTAINER Nobody <nobody@example.invalid>
SHELL ["/bin/sh", "-eu", "-c"]
ENV PATH=/opt/bin:$PATH \
    # a comment inside a continuation
    GREETING="hello, world" QUOTE='it''s'
LABEL org.example.title="Every \"instruction\"" org.example.version=$VERSION
WORKDIR /src
COPY --link --chown=1000:1000 --chmod=0644 ["with space.txt", "./"]
ADD --checksum=sha256:24454f830cdb571e2c4ad15481119c43b3cafd48dd869a9b2945d1036d1dc68d \
    https://example.invalid/archive.tar.gz /tmp/
RUN --mount=type=cache,target=/root/.cache,sharing=locked --mount=type=secret,id=token,required \
    --network=none make \
      all
RUN <<SETUP cat <<-'INDENTED'
echo "$GREETING"
SETUP
	tabs go, $variables stay
	INDENTED
COPY <<one.txt <<"two.txt" /etc/
$GREETING
one.txt
$GREETING
two.txt

FROM build as test
ONBUILD RUN --mount=from=build,target=/b \
  ls /b
RUN ["/bin/test", "-e", "/src"]

FROM scratch
ARG TARGETARCH
COPY --from=build --exclude=*.o --parents /src/./a /b /out/
COPY --from=0 /x /x
USER 65534:65534
VOLUME /data "/more"
EXPOSE 8080/tcp 53/udp 9000-9001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=1m30s --retries=3 CMD wget -q localhost || exit 1
ENTRYPOINT ["/out/app"]
CMD ["--help"]
