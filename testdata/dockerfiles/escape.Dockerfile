# escape=`
FROM example.invalid/windows AS Windows
RUN dir C:\ `
 && echo done
COPY a` b C:\target\
ENV DIR=C:\app\ NAME=`$literal
