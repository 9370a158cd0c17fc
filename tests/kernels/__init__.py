"""The datapath under other kernels than this one: Debian's, booted in qemu; `make test-kernels` runs it."""
