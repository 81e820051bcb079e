// The deleter of each capsule is replaced by one that tells the engine first: see capsules.h.
#include "torch/capsules.h"

#include <ATen/dlpack.h>

#include <unordered_map>

#include "locks/mutex.h"

namespace tierpage {
namespace {

// By the capsule's managed tensor. Deleters run in any thread, with the GIL or without.
template <class Managed>
struct Watched {
  struct Entry {
    void (*deleter)(Managed*) = nullptr;
    const tp_engine_api* engine = nullptr;
    uint64_t base = 0;
  };
  Mutex mutex{LockRank::kCapsules};
  std::unordered_map<Managed*, Entry> entries TP_GUARDED_BY(mutex);

  static Watched& instance() {
    static Watched* const watched = new Watched;  // a consumer may end after static destructors ran
    return *watched;
  }
  static void end(Managed* managed) {
    Watched& watched = instance();
    Entry entry;
    {
      const LockGuard lock(watched.mutex);
      const auto found = watched.entries.find(managed);
      if (found == watched.entries.end()) return;
      entry = found->second;
      watched.entries.erase(found);
    }
    // Before the tensor goes, which may free the region.
    if (entry.engine->forked() == 0) entry.engine->kept.view(entry.base, -1);
    if (entry.deleter != nullptr) entry.deleter(managed);
  }
};

template <class Managed>
void watch(PyObject* capsule, const char* name, const tp_engine_api* engine, uint64_t base) {
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule, name));
  if (managed == nullptr) return PyErr_Clear();
  if (managed->deleter == &Watched<Managed>::end) return;  // one wrapped call made it for another
  Watched<Managed>& watched = Watched<Managed>::instance();
  {
    const LockGuard lock(watched.mutex);
    watched.entries[managed] = {managed->deleter, engine, base};
  }
  managed->deleter = &Watched<Managed>::end;
  engine->kept.view(base, 1);
}

}  // namespace

void watch_capsule(PyObject* capsule, const tp_engine_api* engine, uint64_t base) {
  if (PyCapsule_IsValid(capsule, "dltensor")) watch<DLManagedTensor>(capsule, "dltensor", engine, base);
  if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
    watch<DLManagedTensorVersioned>(capsule, "dltensor_versioned", engine, base);
  }
}

}  // namespace tierpage
