// Implements the cipher over libcrypto's EVP interface.
#include "tiers/page_cipher.h"

#include <dlfcn.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include <cerrno>

#include "tiers/system_error.h"

namespace tierpage {
namespace {

constexpr size_t kKeyBytes = 64;  // AES-256-XTS takes two keys of 32 bytes
constexpr size_t kKeyPageBytes = 4096;
constexpr uint64_t kInitNoAtExit = 0x00080000;  // OPENSSL_INIT_NO_ATEXIT: disk threads may outlive main()

}  // namespace

struct CipherLibrary {
  int (*init_crypto)(uint64_t options, const void* settings);
  void* (*context_new)();
  void (*context_free)(void* context);
  const void* (*aes_256_xts)();
  int (*encrypt_init)(void* context, const void* cipher, void* engine, const unsigned char* key,
                      const unsigned char* tweak);
  int (*encrypt_update)(void* context, unsigned char* out, int* out_bytes, const unsigned char* in, int in_bytes);
  int (*decrypt_init)(void* context, const void* cipher, void* engine, const unsigned char* key,
                      const unsigned char* tweak);
  int (*decrypt_update)(void* context, unsigned char* out, int* out_bytes, const unsigned char* in, int in_bytes);
  std::string problem;  // empty: all of it is there
};

namespace {

template <class Function>
void find(void* handle, const char* name, Function& function, std::string& problem) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
  if (function == nullptr && problem.empty()) problem = std::string("it has no ") + name;
}

CipherLibrary open_library() {
  CipherLibrary library{};
  void* handle = nullptr;
  for (const char* name : {"libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.so"}) {
    if (handle == nullptr) handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (handle == nullptr) {
    library.problem = "libcrypto.so.3 was not found";
    return library;
  }
  find(handle, "OPENSSL_init_crypto", library.init_crypto, library.problem);
  find(handle, "EVP_CIPHER_CTX_new", library.context_new, library.problem);
  find(handle, "EVP_CIPHER_CTX_free", library.context_free, library.problem);
  find(handle, "EVP_aes_256_xts", library.aes_256_xts, library.problem);
  find(handle, "EVP_EncryptInit_ex", library.encrypt_init, library.problem);
  find(handle, "EVP_EncryptUpdate", library.encrypt_update, library.problem);
  find(handle, "EVP_DecryptInit_ex", library.decrypt_init, library.problem);
  find(handle, "EVP_DecryptUpdate", library.decrypt_update, library.problem);
  if (library.problem.empty() && library.init_crypto(kInitNoAtExit, nullptr) != 1)
    library.problem = "it cannot be initialised";
  return library;  // the handle stays open for the life of the process
}

const CipherLibrary& cipher_library() {
  static const CipherLibrary library = open_library();
  return library;
}

Status no_cipher(const std::string& why, int system_error = 0) {
  return Status::error(StatusCode::kUnavailable,
                       "encrypt=True cannot work: " + why +
                           "; install OpenSSL 3 (libssl3 or openssl-libs), or leave encrypt out",
                       system_error);
}

}  // namespace

Status PageCipher::make(std::unique_ptr<PageCipher>* cipher) {
  const CipherLibrary& library = cipher_library();
  if (!library.problem.empty()) return no_cipher(library.problem);
  std::unique_ptr<PageCipher> made(new PageCipher());
  made->library_ = &library;
  if (Status status = made->make_key(); !status.ok()) return status;
  // Once for real: a restricted libcrypto may have the names and refuse the cipher.
  std::byte unit[kUnitBytes]{};
  if (Status status = made->encrypt(0, kUnitBytes, unit, unit); !status.ok()) return no_cipher(status.message);
  *cipher = std::move(made);
  return Status::success();
}

Status PageCipher::make_key() {
  void* memory = mmap(nullptr, kKeyPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return no_cipher("no memory for the key: " + describe_system_error(errno), errno);
  key_ = static_cast<unsigned char*>(memory);
  if (mlock(key_, kKeyPageBytes) != 0) {
    return no_cipher("its key cannot be locked in RAM (ulimit -l): " + describe_system_error(errno), errno);
  }
  if (madvise(key_, kKeyPageBytes, MADV_DONTDUMP) != 0 || madvise(key_, kKeyPageBytes, MADV_DONTFORK) != 0) {
    return no_cipher("its key cannot be kept out of dumps and children: " + describe_system_error(errno), errno);
  }
  for (size_t done = 0; done < kKeyBytes;) {
    const ssize_t count = getrandom(key_ + done, kKeyBytes - done, 0);
    if (count < 0 && errno != EINTR) return no_cipher("no random key: " + describe_system_error(errno), errno);
    if (count > 0) done += static_cast<size_t>(count);
  }
  return Status::success();
}

PageCipher::~PageCipher() {
  if (key_ == nullptr) return;
  explicit_bzero(key_, kKeyPageBytes);
  munmap(key_, kKeyPageBytes);
}

Status PageCipher::encrypt(uint64_t offset, uint64_t bytes, const std::byte* from, std::byte* to) const {
  return run(true, offset, bytes, from, to);
}

Status PageCipher::decrypt(uint64_t offset, uint64_t bytes, const std::byte* from, std::byte* to) const {
  return run(false, offset, bytes, from, to);
}

Status PageCipher::run(bool encrypting, uint64_t offset, uint64_t bytes, const std::byte* from, std::byte* to) const {
  TP_ASSERT(offset % kUnitBytes == 0 && bytes % kUnitBytes == 0);
  const auto init = encrypting ? library_->encrypt_init : library_->decrypt_init;
  const auto update = encrypting ? library_->encrypt_update : library_->decrypt_update;
  void* const context = library_->context_new();
  bool good = context != nullptr && init(context, library_->aes_256_xts(), nullptr, key_, nullptr) == 1;
  for (uint64_t done = 0; good && done < bytes; done += kUnitBytes) {
    unsigned char tweak[16] = {};
    const uint64_t unit = (offset + done) / kUnitBytes;
    for (int i = 0; i < 8; ++i) tweak[i] = static_cast<unsigned char>(unit >> (8 * i));
    int moved = 0;
    good = init(context, nullptr, nullptr, nullptr, tweak) == 1 &&
           update(context, reinterpret_cast<unsigned char*>(to + done), &moved,
                  reinterpret_cast<const unsigned char*>(from + done), static_cast<int>(kUnitBytes)) == 1 &&
           moved == static_cast<int>(kUnitBytes);
  }
  if (context != nullptr) library_->context_free(context);
  if (good) return Status::success();
  return Status::error(StatusCode::kStorageError, std::string("libcrypto failed to ") +
                                                      (encrypting ? "encrypt " : "decrypt ") + std::to_string(bytes) +
                                                      " bytes");
}

}  // namespace tierpage
