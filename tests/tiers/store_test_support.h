// What the store tests share: a scratch directory on a disk, aligned buffers with seeded content, and a client that
// waits for completions through wake().
#pragma once

#include <dirent.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "tiers/block_store.h"
#include "tiers/storage_extension.h"

namespace tierpage::testing {

// True once the kvikio extension that TIERPAGE_KVIKIO names is loaded; false where none is named.
inline bool load_kvikio() {
  const char* path = getenv("TIERPAGE_KVIKIO");
  if (path == nullptr) return false;
  Status status = load_storage_extension(path);
  EXPECT_TRUE(status.ok()) << status.message;
  return status.ok();
}

inline bool is_tmpfs(const std::string& path) {
  struct statfs info;
  return statfs(path.c_str(), &info) == 0 && static_cast<uint32_t>(info.f_type) == 0x01021994u;
}

// A new directory on a disk, removed at the end (it must be empty by then). path() is empty where there is no disk.
class ScratchDirectory {
 public:
  ScratchDirectory() {
    std::vector<std::string> parents;
    if (const char* given = getenv("TMPDIR")) parents.emplace_back(given);
    for (const char* parent : {".", "/var/tmp"}) parents.emplace_back(parent);
    for (const std::string& parent : parents) {
      std::string pattern = parent + "/tierpage-test-XXXXXX";
      if (is_tmpfs(parent) || mkdtemp(pattern.data()) == nullptr) continue;
      path_ = pattern;
      return;
    }
  }
  ~ScratchDirectory() {
    if (path_.empty()) return;
    EXPECT_EQ(rmdir(path_.c_str()), 0) << path_ << " is not empty";
  }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  const std::string& path() const { return path_; }

  std::vector<std::string> names() const {
    std::vector<std::string> names;
    DIR* directory = opendir(path_.c_str());
    while (const dirent* entry = directory ? readdir(directory) : nullptr) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
    }
    if (directory) closedir(directory);
    return names;
  }

 private:
  std::string path_;
};

class AlignedBuffer {
 public:
  explicit AlignedBuffer(uint64_t bytes) : bytes_(bytes), data_(static_cast<std::byte*>(aligned_alloc(4096, bytes))) {
    memset(data_.get(), 0, bytes);
  }
  AlignedBuffer(uint64_t bytes, uint64_t seed) : AlignedBuffer(bytes) {
    std::mt19937_64 random(seed);
    for (uint64_t i = 0; i + 8 <= bytes; i += 8) {
      const uint64_t word = random();
      memcpy(data_.get() + i, &word, 8);
    }
  }
  std::byte* data() const { return data_.get(); }
  uint64_t bytes() const { return bytes_; }
  bool operator==(const AlignedBuffer& other) const {
    return bytes_ == other.bytes_ && memcmp(data(), other.data(), bytes_) == 0;
  }

 private:
  struct Free {
    void operator()(std::byte* data) const { free(data); }
  };
  uint64_t bytes_;
  std::unique_ptr<std::byte, Free> data_;
};

// Counts wakes. Never freed: a worker may still be calling wake after poll() has reported its completion, and tests
// destroy the client before the store.
struct WakeCount {
  std::mutex mutex;
  std::condition_variable changed;
  int wakes = 0;
  static WakeCount& make() {
    static std::vector<std::unique_ptr<WakeCount>>& all = *new std::vector<std::unique_ptr<WakeCount>>;
    return *all.emplace_back(std::make_unique<WakeCount>());
  }
  static void woken(void* context) {
    auto& self = *static_cast<WakeCount*>(context);
    std::lock_guard lock(self.mutex);
    ++self.wakes;
    self.changed.notify_all();
  }
  bool wait() {
    std::unique_lock lock(mutex);
    if (!changed.wait_for(lock, std::chrono::seconds(30), [this] { return wakes > 0; })) return false;
    wakes = 0;
    return true;
  }
};

// Polls only after a wake, so a completion that is not visible when wake runs shows as a timeout.
class StoreClient {
 public:
  explicit StoreClient(BlockStore& store) : store_(store) { store.set_wake(&WakeCount::woken, &wakes_); }

  Status submit(StoreOperation operation, uint64_t cookie, uint64_t offset, const AlignedBuffer& buffer) {
    Status status = store_.submit({cookie, operation, offset, buffer.bytes(), buffer.data()});
    if (status.ok()) ++submitted_;
    return status;
  }

  // Waits for everything submitted; cookie -> status.
  std::map<uint64_t, Status> wait_all() {
    std::map<uint64_t, Status> results;
    std::vector<StoreCompletion> completions;
    while (results.size() < submitted_) {
      if (!wakes_.wait()) {
        ADD_FAILURE() << "timeout: " << results.size() << " of " << submitted_ << " completed";
        break;
      }
      completions.clear();
      const size_t unreported = store_.poll(completions);
      for (StoreCompletion& completion : completions) {
        EXPECT_TRUE(results.emplace(completion.cookie, completion.status).second) << "completed twice";
      }
      EXPECT_LE(unreported, submitted_ - results.size());
    }
    submitted_ = 0;
    return results;
  }

  Status run(StoreOperation operation, uint64_t offset, const AlignedBuffer& buffer) {
    Status status = submit(operation, 1, offset, buffer);
    return status.ok() ? wait_all()[1] : status;
  }
  Status write(uint64_t offset, const AlignedBuffer& buffer) { return run(StoreOperation::kWrite, offset, buffer); }
  Status read(uint64_t offset, const AlignedBuffer& buffer) { return run(StoreOperation::kRead, offset, buffer); }

 private:
  BlockStore& store_;
  size_t submitted_ = 0;
  WakeCount& wakes_ = WakeCount::make();
};

}  // namespace tierpage::testing
