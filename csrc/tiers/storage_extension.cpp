// Implements the link to a storage extension.
//
// A spill file is known to the system calls by its descriptor, to the extension by a handle of its own. The handles
// stand in one table for the process: entries are made at the first transfer and leave it in `closing`, before the
// descriptor's number can mean another file.
#include "tiers/storage_extension.h"

#include <dlfcn.h>

#include <atomic>
#include <cerrno>
#include <map>

#include "locks/mutex.h"
#include "tiers/spill_file.h"
#include "tiers/system_error.h"

namespace tierpage {
namespace {

Mutex g_load_mutex{LockRank::kLoadExtension};
std::atomic<const tp_storage_api*> g_extension{nullptr};

class OpenFiles {
 public:
  // nullptr: errno is set, and the extension's error_message() says why.
  tp_storage_file* get(int descriptor, uint32_t flags) {
    {
      ReaderLock lock(mutex_);
      if (const auto found = files_.find(descriptor); found != files_.end()) return found->second;
    }
    WriterLock lock(mutex_);
    if (const auto found = files_.find(descriptor); found != files_.end()) return found->second;
    tp_storage_file* const file = storage_extension()->open(descriptor, flags);
    if (file != nullptr) files_.emplace(descriptor, file);
    return file;
  }

  void close(int descriptor) {
    WriterLock lock(mutex_);
    const auto found = files_.find(descriptor);
    if (found == files_.end()) return;
    storage_extension()->close(found->second);
    files_.erase(found);
  }

 private:
  SharedMutex mutex_{LockRank::kOpenFiles};
  std::map<int, tp_storage_file*> files_ TP_GUARDED_BY(mutex_);
};

OpenFiles& open_files() {
  static OpenFiles& files = *new OpenFiles;  // stores may outlive the end of main()
  return files;
}

int64_t answer(int64_t result) {
  if (result < 0) errno = static_cast<int>(-result);
  return result < 0 ? -1 : result;
}

template <uint32_t kFlags>
int64_t extension_pread(int descriptor, void* buffer, uint64_t bytes, uint64_t offset) {
  tp_storage_file* const file = open_files().get(descriptor, kFlags);
  return answer(file == nullptr ? -EIO : storage_extension()->read(file, buffer, bytes, offset));
}

template <uint32_t kFlags>
int64_t extension_pwrite(int descriptor, const void* buffer, uint64_t bytes, uint64_t offset) {
  tp_storage_file* const file = open_files().get(descriptor, kFlags);
  return answer(file == nullptr ? -EIO : storage_extension()->write(file, buffer, bytes, offset));
}

void extension_closing(int descriptor) { open_files().close(descriptor); }

std::string extension_words(int system_error) {
  const tp_storage_api& extension = *storage_extension();
  return describe_system_error(system_error) + "; " + extension.name + ": " + extension.error_message();
}

Status no_extension(const std::string& path, const std::string& why) {
  return Status::error(StatusCode::kUnavailable, "the storage extension " + path + " cannot be used: " + why);
}

}  // namespace

const tp_storage_api* storage_extension() { return g_extension.load(std::memory_order_acquire); }

Status load_storage_extension(const std::string& path) {
  LockGuard lock(g_load_mutex);
  if (storage_extension() != nullptr) return Status::success();
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const reason = dlerror();
    return no_extension(path, reason != nullptr ? reason : "the loader gives no reason");
  }
  const auto function = reinterpret_cast<tp_storage_api_function>(dlsym(library, TIERPAGE_STORAGE_API_SYMBOL));
  if (function == nullptr) return no_extension(path, "it has no " TIERPAGE_STORAGE_API_SYMBOL);
  const tp_storage_api* const extension = function();
  if (extension->version != TIERPAGE_STORAGE_API_VERSION || extension->size != sizeof(tp_storage_api)) {
    return no_extension(path, "it has interface " + std::to_string(extension->version) + ", this build needs " +
                                  std::to_string(TIERPAGE_STORAGE_API_VERSION) + ": files of two versions are mixed");
  }
  if (const int32_t result = extension->check(); result != 0) return no_extension(path, extension->error_message());
  g_extension.store(extension, std::memory_order_release);
  return Status::success();
}

const IoTable& extension_io_table(bool peer_to_peer) {
  static const IoTable through_memory{&extension_pread<0>, &extension_pwrite<0>, &extension_closing, &extension_words};
  static const IoTable by_the_drive{&extension_pread<TP_STORAGE_PEER_TO_PEER>,
                                    &extension_pwrite<TP_STORAGE_PEER_TO_PEER>, &extension_closing, &extension_words};
  return peer_to_peer ? by_the_drive : through_memory;
}

}  // namespace tierpage
