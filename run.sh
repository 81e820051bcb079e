#!/usr/bin/env bash
# One command for each thing that a fresh machine should do. Makes .venv beside this file and changes nothing else,
# except that as root on Debian or Ubuntu it installs missing compiler packages.
#
#   ./run.sh demo [options of `tierpage demo`]   set everything up, build, run the main job
#   ./run.sh test                                set everything up, build, pass all tests
#   ./run.sh check                               what is quick of it: rules, lint, stubs, core tests, a short simulation
#   ./run.sh docs                                build the site of the documents: build/site/index.html
#   ./run.sh setup | doctor | python ...
#
# TIERPAGE_YES=1 answers the one question that may come up (a download of gigabytes). PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
ROOT=$PWD
VENV=$ROOT/.venv
TORCH_PIN="torch==2.13.0"
TORCH_RANGE="torch>=2.11,<2.14"
BUILD_PACKAGES=("scikit-build-core>=0.11" "pybind11>=2.13" ninja "nvidia-cuda-runtime==13.*" "nvidia-cuda-crt==13.*")
# What the optional extension _kvikio needs (10 MB, without what kvikio brings along: nothing here may move torch's CUDA).
KVIKIO_PACKAGES=("libkvikio-cu13==26.10.*" "rapids-logger==0.3.*" nvidia-cufile)
TEST_PACKAGES=("numpy" "pytest>=8" "hypothesis>=6" psutil pybind11-stubgen "safetensors>=0.5" matplotlib nbclient ipykernel)
# Pinned, since tierpage.transformers replaces names inside of the first. They are content with the torch that is there.
TEST_LIBRARIES=("transformers==5.24.0" "accelerate==1.15.0" "peft==0.21.2" "lightning==2.6.6" "diffusers==0.42.1"
  "datasets==5.2.0" "trl==1.16.0")
TEST_PROGRAMS=(ruff mypy "clang-format==23.1.5")
PYTHON_SOURCES=(bench docs/conf.py python tests/compat tests/doors tests/python tests/tidy.py tools)
TEST_SYSTEM_PACKAGES=(/usr/include/gtest/gtest.h=libgtest-dev ninja=ninja-build clang++=clang clang-tidy=clang-tidy)
JOBS=${JOBS:-$(nproc)}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

say() { printf '\n== %s\n' "$*" >&2; }
PHASES=()
phase() {  # $1: name, then the command; its seconds are printed at the end
  local name=$1 begin=$SECONDS
  shift
  "$@"
  PHASES+=("$(printf '%5d s  %s' $((SECONDS - begin)) "$name")")
}
fail() { printf 'run.sh: %s\n' "$*" >&2; exit 2; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null &&
       "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail "no Python 3.11, 3.12 or 3.13 found. Install one, or name it: PYTHON=/path/to/python3.12 ./run.sh ..."
}

need_python() {  # a bare system has none. $@: what is needed besides, so that all of it is named at once
  [[ -n ${PYTHON:-} ]] || (find_python) &>/dev/null || command -v python3 >/dev/null ||
    system_packages python3=python3 "$@" /no/such/file=python3-venv
}

# What Debian leaves out of its Python, as system_packages takes it. $1: an interpreter. A package for each version.
python_name() { "$1" -c 'import sys; print("python%d.%d" % sys.version_info[:2])'; }
headers() { echo "$("$1" -c 'import sysconfig; print(sysconfig.get_config_var("INCLUDEPY"))')/Python.h=$(python_name "$1")-dev"; }
no_venv() { "$1" -c 'import ensurepip' 2>/dev/null || echo "/no/such/file=$(python_name "$1")-venv"; }

has_torch() {  # without importing it: fast, and no CUDA start
  "$1" -c 'import sys
from importlib.metadata import version
sys.exit(not (2, 11) <= tuple(map(int, version("torch").split(".")[:2])) <= (2, 13))' 2>/dev/null
}

system_packages() {  # $@: packages by the program or header that they bring, as "probe=package"
  local missing=() item probe
  for item in "$@"; do
    probe=${item%%=*}
    [[ -e $probe ]] || command -v "$probe" >/dev/null || missing+=("${item##*=}")
  done
  [[ ${#missing[@]} -eq 0 ]] && return
  if [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null; then
    say "installing ${missing[*]}"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    fail "missing: ${missing[*]}. Run: sudo apt-get update && sudo apt-get install ${missing[*]}"
  fi
}

build_system() {  # what a build needs of the system. $@: packages besides, as system_packages takes them
  local python=$VENV/bin/python
  need_python g++=g++ cmake=cmake "$@" /no/such/file=python3-dev
  [[ -x $VENV/bin/pip ]] || python=$(find_python)
  system_packages g++=g++ cmake=cmake "$@" "$(headers "$python")" $([[ -x $VENV/bin/pip ]] || no_venv "$python")
}

make_venv() {
  local python
  need_python
  if [[ ! -x $VENV/bin/pip ]]; then  # what an interrupt left may have no more than its Python
    python=$(find_python)
    system_packages $(no_venv "$python")
    local inherit=()
    has_torch "$python" && inherit=(--system-site-packages)
    say "making .venv with $("$python" --version)${inherit:+ and the torch that it has}"
    "$python" -m venv "${inherit[@]}" "$VENV"
  fi
  has_torch "$VENV/bin/python" || install_torch
}

install_torch() {
  local wanted=$TORCH_PIN
  if [[ -e /dev/nvidia0 ]]; then
    wanted=$TORCH_RANGE
  elif "$VENV/bin/pip" install -q "torch==2.13.0+cpu" 2>/dev/null; then
    return  # pip is configured with an index that has the CPU build
  fi
  local plan
  plan=$("$VENV/bin/pip" install --dry-run --quiet --report - "$wanted" 2>/dev/null || true)
  if grep -q '"nvidia-' <<<"$plan"; then
    say "pip would fetch torch for CUDA: about 3 GB."
    [[ -e /dev/nvidia0 ]] || echo "For the CPU build (200 MB) stop here, install torch into .venv as pytorch.org/get-started says for CPU, and run this again." >&2
    if [[ ${TIERPAGE_YES:-} != 1 && -t 0 ]]; then
      read -r -p "Fetch it? [y/N] " answer
      [[ $answer == [yY]* ]] || fail "stopped; nothing was fetched"
    fi
  fi
  say "installing $wanted"
  "$VENV/bin/pip" install -q "$wanted"
}

kvikio_packages() {  # TIERPAGE_TEST_KVIKIO=1: the tests of the extension must run
  if "$VENV/bin/pip" install -q --no-deps "${KVIKIO_PACKAGES[@]}"; then
    export TIERPAGE_TEST_KVIKIO=1
  elif [[ ${TIERPAGE_TEST_KVIKIO:-} == 1 ]]; then
    fail "TIERPAGE_TEST_KVIKIO=1, but pip cannot install ${KVIKIO_PACKAGES[*]}"
  else
    say "pip cannot install ${KVIKIO_PACKAGES[*]}: the tests of the kvikio extension are skipped"
  fi
}

setup() {
  build_system
  make_venv
  say "building tierpage for torch $("$VENV/bin/python" -c 'from importlib.metadata import version; print(version("torch"))')"
  "$VENV/bin/pip" install -q "${BUILD_PACKAGES[@]}"
  # TIERPAGE_WERROR=1: warnings are errors in what is installed, as they are in the suites.
  CMAKE_BUILD_PARALLEL_LEVEL=$JOBS "$VENV/bin/pip" install -q --no-build-isolation --no-deps --force-reinstall \
    ${TIERPAGE_WERROR:+--config-settings=cmake.define.TIERPAGE_WERROR=ON} .
}

package_build() {  # where pip built the package: `build-dir` in pyproject.toml
  "$VENV/bin/python" -c 'import sys, sysconfig
python = "cp%d%d" % sys.version_info[:2]
print("build/" + "-".join([python, python, sysconfig.get_platform().replace("-", "_").replace(".", "_")]))'
}

folder() {  # $1: sanitizers or empty, $2: name of the build. The suites themselves test the objects of the package.
  if [[ -z $1 ]]; then package_build; else echo "build/$2"; fi
}

native_build() {  # $1: name, $2: sanitizers or empty, $3: targets, empty: all
  say "C++ suites${2:+ under the sanitizers $2}"
  local options=(-DTIERPAGE_TESTS=ON -DTIERPAGE_TORCH_TESTS=ON)
  if [[ -z $2 ]]; then  # all else is as pip left it, and pip takes these back: [tool.scikit-build.cmake.define]
    options+=(-DTIERPAGE_WERROR=ON)
    [[ ${TIERPAGE_TEST_KVIKIO:-} == 1 ]] && options+=(-DCMAKE_REQUIRE_FIND_PACKAGE_Kvikio=ON)
  else
    # kvikio's own code is not instrumented: with a sanitizer there is nothing to learn.
    options+=(-G Ninja -DTIERPAGE_PYTHON=OFF -DTIERPAGE_KVIKIO=OFF -DTIERPAGE_WERROR=ON -DTIERPAGE_SANITIZER="$2"
      -DPython_EXECUTABLE="$VENV/bin/python" -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O2 -g1 -DNDEBUG")
  fi
  local at; at=$(folder "$2" "$1")
  cmake -S . -B "$at" "${options[@]}" >"build/$1.log" || { cat "build/$1.log"; return 1; }
  phase "build $1" cmake --build "$at" -j "$JOBS" ${3:+--target $3}
}

native_suites() {  # $1: name, $2: sanitizers or empty
  # core and sim have one thread (tests/tidy.py sees to it): the thread sanitizer cannot find anything in them.
  # codec has none but the lanes of its tests.
  local only=() targets=""
  case $2 in
    thread) targets="tiers_tests engine_tests guard_tests torch_tests" only=(-R '^(tiers|engine|engine_fork|guard|torch)$') ;;
    ?*)
      targets="core_tests sim_tests codec_tests tiers_tests engine_tests guard_tests torch_tests"
      only=(-R '^(core|sim|sim_more|codec|tiers|engine|engine_fork|guard|torch)$')
      ;;
  esac
  native_build "$1" "$2" "$targets"
  phase "tests $1" ctest --test-dir "$(folder "$2" "$1")" -j "$JOBS" --output-on-failure --output-junit "$ROOT/build/$1.xml" "${only[@]}"
}

thread_safety() {  # clang proves what csrc/locks/mutex.h lets classes say about their locks
  local cuda torch python
  cuda=$(sed -n 's/^CUDA_HEADERS_INCLUDE_DIR:PATH=//p' "$(package_build)/CMakeCache.txt")
  torch=$("$VENV/bin/python" -c 'import importlib.util as u, os; print(os.path.dirname(u.find_spec("torch").origin))')
  python=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  # Of csrc/torch what takes locks, but for typed_operators.cpp, whose templates clang 14 does not understand.
  { printf '%s\n' csrc/tiers/*.cpp csrc/engine/*.cpp csrc/guard/*.cpp
    grep -lE '(LockGuard|UniqueLock) ' csrc/torch/*.cpp | grep -v typed_operators.cpp
  } | xargs -P "$JOBS" -n 4 clang++ -std=c++20 -fsyntax-only -Wthread-safety -Werror=thread-safety -DNDEBUG \
    -DC10_CUDA_NO_CMAKE_CONFIGURE_FILE -Icsrc -isystem "$torch/include" \
    -isystem "$torch/include/torch/csrc/api/include" -isystem "$python" -isystem "$cuda"
}

fault_checks() {  # those of .clang-tidy; csrc/torch and csrc/python apart, since torch's headers take minutes
  local cuda
  cuda=$(sed -n 's/^CUDA_HEADERS_INCLUDE_DIR:PATH=//p' "$(package_build)/CMakeCache.txt")
  printf '%s\n' csrc/core/*/*.cpp csrc/{tiers,engine,estimate,guard}/*.cpp |
    xargs -P "$JOBS" -n 6 sh -c 'clang-tidy --quiet "$@" -- -std=c++20 -DNDEBUG -Icsrc -isystem "$0"' "$cuda"
}

source_rules() {
  "$VENV/bin/python" tests/tidy.py
  "$VENV/bin/python" tools/include_graph.py --check docs/architecture.md
  "$VENV/bin/ruff" check "${PYTHON_SOURCES[@]}"
  "$VENV/bin/ruff" format --check -q "${PYTHON_SOURCES[@]}"
  "$VENV/bin/mypy"
  git ls-files 'csrc/*.h' 'csrc/*.cpp' 'tests/*.h' 'tests/*.cpp' 'bench/*.cpp' | xargs "$VENV/bin/clang-format" --dry-run -Werror
  thread_safety
  "$VENV/bin/python" tools/stubs.py --check
}

site() {  # the documents as pages; warnings are errors
  "$VENV/bin/python" tools/build_docs.py --requirements | xargs -d '\n' "$VENV/bin/pip" install -q
  "$VENV/bin/python" tools/build_docs.py
}

browser() {  # Ubuntu has none as a package
  command -v chromium >/dev/null || (system_packages chromium=chromium) 2>/dev/null ||
    say "no chromium can be installed here: the page of tierpage report is not looked at in a browser"
}

run_check() {  # under two minutes once the suites are built
  build_system "${TEST_SYSTEM_PACKAGES[@]}"
  grep -qsF "\"$VENV/bin/" "$(package_build)/.skbuild-info.json" || setup
  "$VENV/bin/pip" install -q "${TEST_PACKAGES[@]}"
  "$VENV/bin/pip" install -q --ignore-installed "${TEST_PROGRAMS[@]}"
  mkdir -p build
  native_build tests "" "core_tests sim_tests"
  phase "rules, lint, locks, stubs" source_rules
  phase "core tests" "$(package_build)/tests/core_tests" --gtest_brief=1
  TIERPAGE_SIM_SEEDS=500 phase "short simulation" "$(package_build)/tests/sim_tests" --gtest_brief=1
  phases
}

phases() { printf '%s\n' "" "${PHASES[@]}" >&2; }

run_tests() {
  export TIERPAGE_WERROR=1  # in the package too, whose objects are what is tested
  build_system "${TEST_SYSTEM_PACKAGES[@]}"
  browser
  make_venv
  kvikio_packages
  phase "environment and package" setup
  "$VENV/bin/pip" install -q "${TEST_PACKAGES[@]}"
  # Most of their files are never imported.
  "$VENV/bin/pip" install -q --no-compile "${TEST_LIBRARIES[@]}" ||
    say "pip cannot install ${TEST_LIBRARIES[*]}: their tests are skipped"
  # An environment that inherits counts a program of the outer Python as installed, and leaves .venv/bin without it.
  "$VENV/bin/pip" install -q --ignore-installed "${TEST_PROGRAMS[@]}"
  mkdir -p build
  # The simulator runs its fixed seeds, and some that no commit before this one has run. The text replays them.
  export TIERPAGE_SIM_EXTRA_SEED=${TIERPAGE_SIM_EXTRA_SEED:-$(git rev-parse HEAD 2>/dev/null || true)}
  say "TIERPAGE_SIM_EXTRA_SEED=$TIERPAGE_SIM_EXTRA_SEED"
  native_suites tests ""
  TSAN_OPTIONS="halt_on_error=1 second_deadlock_stack=1" native_suites tsan thread
  ASAN_OPTIONS="detect_leaks=1" UBSAN_OPTIONS="print_stacktrace=1" native_suites asan address,undefined
  say "source rules, lint, locks and stubs"
  phase "rules, lint, locks, stubs" source_rules
  phase "clang-tidy" fault_checks
  phase "site of the documents" site
  say "Python tests"
  phase "Python tests" "$VENV/bin/python" -m pytest -q --junit-xml=build/pytest.xml
  phases
}

case "${1:-}" in
  setup) setup ;;
  demo | doctor)
    setup >&2
    # Nothing here needs NumPy, and torch's first words would be that there is none.
    PYTHONWARNINGS=${PYTHONWARNINGS:-ignore:Failed to initialize NumPy} exec "$VENV/bin/tierpage" "$@"
    ;;
  test) run_tests ;;
  check) run_check ;;
  docs) make_venv; site ;;
  python) shift; exec "$VENV/bin/python" "$@" ;;
  *) sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
