// The storage extension over kvikio: a kvikio::FileHandle per spill file, behind the C interface of storage_api.h.
//
// kvikio splits and bounces where it must; this file only opens, calls and turns exceptions into errno. Transfers run
// on a pool of this library's own, so that the size of kvikio's, which belongs to the program, does not matter.
#include <dlfcn.h>
#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>

#include <kvikio/compat_mode.hpp>
#include <kvikio/defaults.hpp>
#include <kvikio/file_handle.hpp>
#include <kvikio/shim/cuda.hpp>
#include <kvikio/shim/cufile.hpp>
#include <kvikio/version_config.hpp>

#include "tiers/quiet_thread.h"
#include "tiers/storage_api.h"

struct tp_storage_file {
  kvikio::FileHandle handle;
};

namespace tierpage {
namespace {

constexpr unsigned kPoolThreads = 16;  // as many requests as the pager has with the disk at once
constexpr uint64_t kTransferBytesMax = uint64_t{1} << 30;

thread_local std::string t_error_message;

int fail(int system_error, std::string message) {
  t_error_message = std::move(message);
  return -system_error;
}

// kvikio's errors of read and write carry the system's words at their end, not its number.
int errno_of(const std::exception& error) {
  if (const auto* known = dynamic_cast<const std::system_error*>(&error)) return std::max(known->code().value(), 1);
  const std::string words = error.what();
  for (const int candidate : {ENOSPC, EDQUOT, EFBIG, EINTR, EINVAL, EOPNOTSUPP, ENOMEM}) {
    char text[128] = "";
    if (words.ends_with(strerror_r(candidate, text, sizeof text))) return candidate;
  }
  return EIO;
}

// Runs `call`; an exception becomes -errno and a message.
template <class Call>
auto guarded(Call&& call) -> decltype(call()) {
  try {
    return call();
  } catch (const std::exception& error) {
    return fail(errno_of(error), error.what());
  } catch (...) {
    return fail(EIO, "an exception of unknown kind");
  }
}

kvikio::ThreadPool& pool() {
  static kvikio::ThreadPool& threads = *[] {
    SignalsBlocked signals_blocked;
    return new kvikio::ThreadPool(kPoolThreads,
                                  kvikio::make_thread_pool_init_task("tp-kvikio"));  // to the end of the process
  }();
  return threads;
}

int32_t check() {
  return guarded([]() -> int32_t {
    (void)kvikio::cudaAPI::instance();  // throws without libcuda, which kvikio asks even about host memory
    return 0;
  });
}

// ---- peer to peer ----

bool system_may_do_peer_to_peer() {
  std::error_code ignored;
  return std::filesystem::exists("/sys/module/nvidia_fs", ignored) ||
         std::filesystem::exists("/sys/class/nvme", ignored);
}

// cuFile falls back to RAM by itself and says nothing, unless this is off before its driver opens.
int forbid_silent_fall_back() {
  void* const library = dlopen("libcufile.so.0", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return fail(ENOENT, "libcufile.so.0 cannot be opened (package nvidia-cufile)");
  const auto set = reinterpret_cast<decltype(&cuFileSetParameterBool)>(dlsym(library, "cuFileSetParameterBool"));
  if (set == nullptr) return fail(ENOSYS, "libcufile.so.0 is too old: it has no cuFileSetParameterBool");
  // Fails where the program has opened the driver already; its properties then tell what it allows.
  (void)set(CUFILE_PARAM_PROPERTIES_ALLOW_COMPAT_MODE, false);
  return 0;
}

// CU_FILE_P2P_SUPPORTED; the headers of older toolkits do not name it.
constexpr unsigned kPeerToPeerFlag = 4;

int32_t look_for_peer_to_peer() {
  if (!system_may_do_peer_to_peer()) return fail(ENODEV, "neither the module nvidia_fs nor an NVMe drive is there");
  if (const int result = forbid_silent_fall_back(); result != 0) return result;
  return guarded([]() -> int32_t {
    kvikio::cuFileAPI& cufile = kvikio::cuFileAPI::instance();
    cufile.driver_open();
    CUfileDrvProps_t properties{};
    if (const CUfileError_t result = cufile.DriverGetProperties(&properties); result.err != CU_FILE_SUCCESS) {
      return fail(ENODEV, std::string("cuFileDriverGetProperties: ") + cufileop_status_error(result.err));
    }
    if ((properties.nvfs.dcontrolflags >> CU_FILE_ALLOW_COMPAT_MODE & 1) != 0) {
      return fail(EBUSY, "the program has opened cuFile with its fall-back to RAM allowed, so nothing can be proved");
    }
    const bool through_module =
        properties.nvfs.major_version > 0 && (properties.nvfs.dstatusflags >> CU_FILE_NVME_SUPPORTED & 1) != 0;
    const bool through_kernel = (properties.fflags >> kPeerToPeerFlag & 1) != 0;
    if (!through_module && !through_kernel) {
      return fail(ENODEV, "cuFile reports neither NVMe support of nvidia-fs nor PCI peer-to-peer of the kernel");
    }
    return 0;
  });
}

// Once for the process: it opens cuFile's driver, which settles what it does.
int32_t check_peer_to_peer() {
  struct Answer {
    int32_t result = look_for_peer_to_peer();
    std::string message = t_error_message;
  };
  static const Answer answer;
  if (answer.result != 0) t_error_message = answer.message;
  return answer.result;
}

// ---- files ----

// The file has no name: the link of the descriptor leads to it.
tp_storage_file* open_file(int32_t descriptor, uint32_t flags) {
  tp_storage_file* opened = nullptr;
  (void)guarded([&]() -> int32_t {
    const int descriptor_flags = fcntl(descriptor, F_GETFL);
    if (descriptor_flags < 0) return fail(EBADF, "not an open file");
    if ((descriptor_flags & O_DIRECT) != 0) {
      // Of the whole process: kvikio has no such switch per file.
      kvikio::defaults::set_auto_direct_io_read(true);
      kvikio::defaults::set_auto_direct_io_write(true);
    }
    const bool peer_to_peer = (flags & TP_STORAGE_PEER_TO_PEER) != 0;
    // First: asked to do without its fall-back where there is no cuFile, kvikio ends the process.
    if (peer_to_peer && check_peer_to_peer() != 0) return -ENODEV;
    opened = new tp_storage_file{kvikio::FileHandle("/proc/self/fd/" + std::to_string(descriptor), "r+",
                                                    kvikio::FileHandle::m644,
                                                    peer_to_peer ? kvikio::CompatMode::OFF : kvikio::CompatMode::ON)};
    return 0;
  });
  return opened;
}

void close_file(tp_storage_file* file) { delete file; }

int64_t read_file(tp_storage_file* file, void* buffer, uint64_t bytes, uint64_t offset) {
  return guarded([&]() -> int64_t {
    const uint64_t count = std::min(bytes, kTransferBytesMax);
    return static_cast<int64_t>(file->handle.pread(buffer, count, offset, count, 0, false, &pool()).get());
  });
}

int64_t write_file(tp_storage_file* file, const void* buffer, uint64_t bytes, uint64_t offset) {
  return guarded([&]() -> int64_t {
    const uint64_t count = std::min(bytes, kTransferBytesMax);
    return static_cast<int64_t>(file->handle.pwrite(buffer, count, offset, count, 0, false, &pool()).get());
  });
}

const char* error_message() { return t_error_message.c_str(); }

}  // namespace
}  // namespace tierpage

extern "C" __attribute__((visibility("default"))) const tp_storage_api* tierpage_storage_api(void) {
  using namespace tierpage;
  static const tp_storage_api api{
      TIERPAGE_STORAGE_API_VERSION,
      sizeof(tp_storage_api),
      "kvikio " KvikIO_VERSION,
      &check,
      &check_peer_to_peer,
      &open_file,
      &close_file,
      &read_file,
      &write_file,
      &error_message,
  };
  return &api;
}
