#!/usr/bin/env bash
# Packs all that a Linux host without Java and without a network needs to run the ops under nd4j-native, on its GPU too: a
# small Java runtime, the jars, the CUDA library, the tests that need a GPU, and GpuReport.
#   benchmarks/gpu/bundle.sh [--cuda-library FILE] [--split SIZE] [OUT_DIR]
#   --cuda-library FILE  this libgatedfwa_cuda.so instead of building one, which takes nvcc
#   --split SIZE         into files of at most SIZE, such as 40m
# Writes gatedfwa-gpu.tar.xz or its parts, SHA256SUMS and unpack.sh into OUT_DIR (benchmarks/target/bundle). Needs a JDK 17
# with its jmods, zip, unzip and xz. There: sh unpack.sh DIRECTORY, then DIRECTORY/run.
set -euo pipefail

fail() {
  echo "bundle.sh: $1" >&2
  exit 2
}

cuda= split= out=
while (($#)); do
  case $1 in
    --cuda-library)
      cuda=$(realpath "${2:?}")
      [[ -f $cuda ]] || fail "no file $2"
      shift 2
      ;;
    --split)
      split=${2:?}
      shift 2
      ;;
    -*) fail "unknown option $1; there are --cuda-library FILE and --split SIZE" ;;
    *)
      out=$(realpath -m "$1")
      shift
      ;;
  esac
done
cd "$(dirname "$0")/../.."
out=${out:-$PWD/benchmarks/target/bundle}
for tool in jlink zip unzip xz; do
  command -v $tool > /dev/null || fail "$tool is missing"
done

./mvnw -q -pl benchmarks -am package -DskipTests ${cuda:+-Dgpu.skip}

bundle=$(mktemp -d)
trap 'rm -rf "$bundle"' EXIT
mkdir "$bundle/lib" "$bundle/test"

# Modules: what the jars turned out to need. No java.desktop: it brings libraries of its own and needs fonts.
jlink --add-modules java.logging,java.management,java.naming,java.sql,java.xml,jdk.unsupported \
  --compress=0 --strip-debug --no-man-pages --no-header-files --output "$bundle/java"

# Stored, not deflated, jars: xz finds what they have in common.
repack() {
  local content=$bundle/content
  mkdir "$content"
  unzip -q "$1" -d "$content"
  rm -rf "$content"/META-INF/native-image "$content"/org/bytedeco/*/linux-x86_64/include
  (cd "$content" && find . -type f | LC_ALL=C sort | zip -q -0 -X -@ "$bundle/lib/$(basename "$1")")
  rm -rf "$content"
}
gpu_jar=$(find native-ops/target -maxdepth 1 -name '*-gpu.jar')
while read -r jar; do
  # The test classes of native-ops come with the others'; nothing there asks for the zoo's weights.
  [[ $jar == *-tests.jar || $jar == */zoo-*.jar || -d $jar ]] || repack "$jar"
done < <(tr ':' '\n' < benchmarks/target/classpath; echo; ls benchmarks/target/benchmarks-*.jar)
if [[ -n $cuda ]]; then
  library=$bundle/gpu/io/github/gatedfwa/nativeops/linux-x86_64-gpu
  mkdir -p "$library"
  cp "$cuda" "$library/libgatedfwa_cuda.so"
elif [[ -n $gpu_jar ]]; then
  repack "$gpu_jar"
else
  echo "bundle.sh: no CUDA library was built (no nvcc): the ops of this bundle run on the CPU" >&2
fi
for module in native-ops samediff-ops layers; do
  cp -r $module/target/test-classes "$bundle/test/$module"
done
install -m 755 benchmarks/gpu/run.sh "$bundle/run"

mkdir -p "$out"
rm -f "$out"/gatedfwa-gpu.tar.xz* "$out"/SHA256SUMS
tar --sort=name --owner=0 --group=0 --numeric-owner -C "$bundle" -c . |
  xz --threads=0 --block-size=256MiB --x86 --lzma2=preset=6,dict=128MiB > "$out/gatedfwa-gpu.tar.xz.part"
if [[ -n $split ]]; then
  split -d -b "$split" "$out/gatedfwa-gpu.tar.xz.part" "$out/gatedfwa-gpu.tar.xz."
  rm "$out/gatedfwa-gpu.tar.xz.part"
else
  mv "$out/gatedfwa-gpu.tar.xz.part" "$out/gatedfwa-gpu.tar.xz"
fi
install -m 755 benchmarks/gpu/unpack.sh "$out/unpack.sh"
(cd "$out" && sha256sum gatedfwa-gpu.tar.xz* > SHA256SUMS && ls -l)
