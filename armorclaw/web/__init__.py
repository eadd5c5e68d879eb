"""A small strict HTTP/1.1 server on h11, for any Trio stream. It knows no feature: pages and proxies come to it."""
