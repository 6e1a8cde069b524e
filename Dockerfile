# The last stage is the bare static binary: no shell, no libc, nothing to patch but Fairway itself.
# Not run where it was written, since no image could be pulled there. The release build itself is the README's; on musl it
# has not been tried.
FROM rust:1.95-alpine AS build
RUN apk add --no-cache build-base cmake git perl
WORKDIR /src
COPY . .
# Alpine's host target is musl and links statically.
RUN cargo build --release --locked -p fairway && cp target/release/fairway /fairway

FROM scratch
COPY --from=build /fairway /fairway
# Envoy's path too, so that images that start Envoy can start this.
COPY --from=build /fairway /usr/local/bin/envoy
USER 1337:1337
ENTRYPOINT ["/fairway"]
