#!/usr/bin/env bash
# On a GPU machine: the kvikio extension beside direct I/O. Says what the probe finds, runs the conformance suite and
# round trips with storage_backend="kvikio", and compares the two ways between drive and device memory.
# The wheels of libkvikio-cu13 and rapids-logger (and nvidia-cufile, where torch brought none) lie in the folder that
# WHEELS names. Usage: WHEELS=folder tests/gpu/gds.sh [tiers_tests binary [engine_tests binary]]
set -uo pipefail
out=$(realpath "${OUT:-.}")
suites=()
for suite in "$@"; do suites+=("$(realpath "$suite")"); done
directory=${DIRECTORY:-/var/tmp}
export PYTHONWARNINGS=ignore
python3 -m pip install -q --no-index --no-deps "${WHEELS:?the folder of the wheels}"/*.whl > "$out/wheels.log" 2>&1 || { tail -20 "$out/wheels.log"; exit 1; }
python3 -m pip install -q --no-build-isolation --no-index --no-deps --force-reinstall . > "$out/build.log" 2>&1 || { tail -40 "$out/build.log"; exit 1; }
cd tests/gpu || exit 1  # not the source tree's package
cat > "$out/gds.py" <<'PY'
import json, sys, time, torch, tierpage
from tierpage import native, storage
directory = sys.argv[1]
print("device:", torch.cuda.get_device_name(), "torch", torch.__version__)
print("extension:", storage.find_extension(), "problem:", storage.kvikio_problem())
module = native.engine_module()
print("peer to peer:", module.storage_peer_to_peer() or "may work")
print("rdma capable frames:", module.probe_device("cuda", 0).get("rdma_capable"))
for straight in (False, True):
    print("peer_to_peer" if straight else "kvikio bounces", json.dumps(module.compare_storage("cuda", 0, directory, straight)))
class Bounced(storage.Backend):
    """Pages go to and from device memory through kvikio's own buffers: the engine's road without the drive's."""
    def engine_options(self):
        return {"storage_extension": True, "storage_peer_to_peer": False, "storage_to_device": True}
sizes = {"device_budget": "256MiB", "host_budget": "80MiB", "nvme_budget": "4GiB"}
choose = storage.choose
cases = (("auto", "read", 0), ("auto", "off", 0), ("direct", "read", 0), ("direct", "off", 0), ("kvikio", "read", 0),
         ("kvikio", "off", 0), ("kvikio", "off", 1))
for asked, verify, bounced in cases:
    storage.choose = (lambda config: Bounced("kvikio", "forced by this test")) if bounced else choose
    with tierpage.enable(directory, storage_backend=asked, verify=verify, **sizes) as pager:
        tensors = [torch.full((16 << 20,), float(i), device="cuda") for i in range(16)]  # 1 GiB
        torch.cuda.synchronize()
        start = time.perf_counter()
        right = all(bool((tensor == i).all()) for _ in range(2) for i, tensor in enumerate(tensors))
        seconds = time.perf_counter() - start
        stats = tierpage.memory_stats()
        moved = stats["fetch_bytes.nvme_to_device"] + stats["fetch_bytes.nvme_to_host"]
        force = pager.config.in_force
        print(json.dumps({"asked": asked, "verify": verify, "right": right, "fetched_from_nvme": moved,
                          "seconds": round(seconds, 3), "chosen": force["storage_backend"],
                          "because": force["storage_reason"], "storage": force["storage"]}))
        assert right and moved > 0
        del tensors
PY
timeout 300 python3 "$out/gds.py" "$directory" 2>&1 | tail -30
timeout 60 tierpage doctor --no-speed "$directory" 2>&1 | grep -E "storage|cuFile"
packages=$(python3 -c 'import importlib.util as u; print(":".join(u.find_spec(n).submodule_search_locations[0] + "/lib64" for n in ("libkvikio", "rapids_logger")))')
extension=$(python3 -c 'from tierpage import storage; print(storage.find_extension()[0])')
for suite in "${suites[@]}"; do
  LD_LIBRARY_PATH="$packages:${LD_LIBRARY_PATH:-}" TIERPAGE_KVIKIO=$extension TMPDIR=$directory \
    timeout 120 "$suite" --gtest_filter='*Kvikio*' > "$out/$(basename "$suite").log" 2>&1
  echo "$(basename "$suite"): exit $?"
  grep -E "FAILED|PASSED|SKIPPED|Failure" -A4 "$out/$(basename "$suite").log" | tail -20
done
