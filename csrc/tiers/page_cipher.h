// What lies on the disk, encrypted: AES-256-XTS over units of 4096 bytes, each with its place in the store as tweak.
//
// Through the system's libcrypto (OpenSSL 1.1 or 3), opened when a cipher is made; nothing links it. The key is random,
// lives in one locked page that no core dump and no child process contains, is overwritten at the end and never leaves
// the process, so what a drive keeps after it cannot be read by anybody. While a unit is worked on, libcrypto holds the
// expanded key in ordinary memory, which it overwrites too.
//
// XTS keeps lengths and hides contents; it does not prove that nobody changed them (the store's checksums find
// accidents), and the same bytes written twice to one place look the same there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/model/status.h"

namespace tierpage {

struct CipherLibrary;  // entry points of libcrypto

class PageCipher {
 public:
  static constexpr uint64_t kUnitBytes = 4096;

  // kUnavailable where there is no libcrypto, no AES-256-XTS in it, or no memory that can be locked.
  static Status make(std::unique_ptr<PageCipher>* cipher);
  ~PageCipher();
  PageCipher(const PageCipher&) = delete;
  PageCipher& operator=(const PageCipher&) = delete;

  // `offset` and `bytes` are multiples of kUnitBytes. `from` and `to` are the same or do not overlap. Any thread.
  Status encrypt(uint64_t offset, uint64_t bytes, const std::byte* from, std::byte* to) const;
  Status decrypt(uint64_t offset, uint64_t bytes, const std::byte* from, std::byte* to) const;

 private:
  PageCipher() = default;
  Status make_key();
  Status run(bool encrypting, uint64_t offset, uint64_t bytes, const std::byte* from, std::byte* to) const;

  const CipherLibrary* library_ = nullptr;
  unsigned char* key_ = nullptr;  // one page; the key at its begin
};

}  // namespace tierpage
