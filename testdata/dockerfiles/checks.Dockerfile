# check=experimental=all
ARG Base
from $Base AS Build
# not its name
FROM --platform=linux/amd64 busybox:${TGA} AS context
Env a b
CMD one
# check=skip=SecretsUsedInArgOrEnv
ENV GITHUB_TOKEN=x
RUN one \

  two
FROM scratch AS build
FROM --platform=$TARGETPLATFORM scratch as build
MAINTAINER me
