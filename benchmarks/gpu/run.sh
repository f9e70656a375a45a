#!/bin/sh
# Runs what the bundle holds:
#   ./run test                       the tests that need a GPU
#   ./run bench [--quick] DIRECTORY  golden cases, then GpuReport, which writes gpu.csv and gpu.md into the directory
#   ./run java ...                   this Java, with all of the bundle on its class path
set -eu
case $0 in */*) here=$(cd "${0%/*}" && pwd) ;; *) here=$PWD ;; esac
classes=$here/gpu:$here/lib/*
tests=$here/test/native-ops:$here/test/samediff-ops:$here/test/layers

on_gpu() {
  "$here/java/bin/java" -Xmx3g -Dorg.bytedeco.javacpp.maxbytes=6g -Dorg.bytedeco.javacpp.maxphysicalbytes=12g \
    -Dgatedfwa.device=cuda -cp "$tests:$classes" org.junit.platform.console.ConsoleLauncher execute \
    --disable-banner --disable-ansi-colors --details=tree --scan-classpath="$tests" --include-tag=gpu "$@"
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
  test) on_gpu --include-classname='.*OnGpuTest' "$@" ;;
  bench)
    on_gpu --include-classname='.*OpsOnGpuTest' --include-methodname='.*golden'
    exec "$here/java/bin/java" -cp "$classes" io.github.gatedfwa.benchmarks.GpuReport "$@"
    ;;
  java) exec "$here/java/bin/java" -cp "$classes" "$@" ;;
  *)
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
