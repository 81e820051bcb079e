# Sourced by the scripts beside it that take wheels, in the root of the repository: builds the package from this tree into
# the machine's Python, and puts the wheels of the folder WHEELS, if it is given, on its path. INSTALLED: a caller that runs
# several scripts has built already. Sets `out`.
out=${OUT:-.}
export PYTHONWARNINGS=ignore
if [[ -z ${INSTALLED:-} ]]; then
  python3 -m pip install -q --no-build-isolation --no-index --no-deps . > "$out/build.log" 2>&1 || { tail -40 "$out/build.log"; exit 1; }
fi
if [[ -n ${WHEELS:-} ]]; then
  site=$(mktemp -d)
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl || exit 1
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
