# Every line below FROM is wrong in its own way.
FROM base AS 1st
FORM base
RUN --mout=type=cache,target=/x true
RUN --network=hots true
RUN --mount=from=$base,target=/x true
COPY one
COPY --from=a --from=b one two
COPY --chwon=me \
     # the flag above
     one two
ADD one <<two
two
ENV =value
ARG =value
LABEL lonely
EXPOSE
USER
SHELL /bin/sh
HEALTHCHECK CMD
HEALTHCHECK --interval=30 CMD true
HEALTHCHECK --retries=-1 CMD true
ONBUILD ONBUILD true
CMD [true]
ENTRYPOINT --verbose ["x"]
FROM
RUN cat <<END
never ended
