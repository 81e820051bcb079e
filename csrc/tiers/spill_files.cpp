// Implements the striped range over spill files.
#include "tiers/spill_files.h"

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <bit>
#include <set>
#include <utility>

namespace tierpage {

Status SpillFiles::open(const SpillFilesOptions& options, const IoTable& table) {
  TP_ASSERT(files_.empty());
  const size_t count = options.directories.size();
  if (count == 0) return Status::error(StatusCode::kInvalidArgument, "no nvme directory was given");
  if (count > 1 && (!std::has_single_bit(options.stripe_bytes) || options.stripe_bytes < 4 * kKiB)) {
    return Status::error(StatusCode::kInvalidArgument, "stripe_bytes " + std::to_string(options.stripe_bytes) +
                                                           ": give a power of two, at least 4096");
  }
  SpillFileOptions each;
  each.direct = options.direct;
  each.capacity_bytes = options.capacity_bytes;
  if (count > 1) each.capacity_bytes = round_up(options.capacity_bytes, count * options.stripe_bytes) / count;
  std::vector<SpillFile> opened;
  for (const std::string& directory : options.directories) {
    each.directory = directory;
    SpillFile file;
    if (Status status = file.open(each, table); !status.ok()) return status;
    opened.push_back(std::move(file));
  }
  for (const SpillFile& file : opened) alignment_bytes_ = std::max(alignment_bytes_, file.alignment_bytes());
  stripe_bytes_ = std::max(options.stripe_bytes, alignment_bytes_);
  capacity_bytes_ = opened.front().capacity_bytes();
  if (count > 1) capacity_bytes_ = capacity_bytes_ / stripe_bytes_ * stripe_bytes_ * count;
  files_ = std::move(opened);
  return Status::success();
}

SpillFiles::Place SpillFiles::place(uint64_t offset) const {
  if (files_.size() == 1) return {&files_.front(), offset, capacity_bytes_ - offset};
  const uint64_t stripe = offset / stripe_bytes_;
  const uint64_t within = offset % stripe_bytes_;
  return {&files_[stripe % files_.size()], stripe / files_.size() * stripe_bytes_ + within, stripe_bytes_ - within};
}

bool SpillFiles::direct() const {
  return std::all_of(files_.begin(), files_.end(), [](const SpillFile& file) { return file.direct(); });
}

std::string SpillFiles::description() const {
  if (files_.size() == 1) return "spill file in " + files_.front().directory() + ", " + files_.front().mode();
  std::string text = std::to_string(files_.size()) + " spill files in ";
  for (size_t i = 0; i < files_.size(); ++i) {
    text += (i == 0 ? "" : i + 1 == files_.size() ? " and " : ", ") + files_[i].directory();
  }
  text += ", striped by " + std::to_string(stripe_bytes_) + " bytes";
  if (direct()) return text + ", direct";
  for (const SpillFile& file : files_) text += ", " + file.directory() + ": " + file.mode();
  return text;
}

std::string SpillFiles::notice() const {
  std::string text;
  for (const SpillFile& file : files_) {
    if (file.direct() || file.mode() == SpillFile::kBufferedAsAsked) continue;
    text += (text.empty() ? "" : "; ") + ("the spill file in '" + file.directory() + "' is " + file.mode());
  }
  return text.empty() ? text : text + "; each byte is copied once more by the processor";
}

uint64_t SpillFiles::drive_bytes() const {
  std::set<dev_t> seen;
  uint64_t bytes = 0;
  for (const SpillFile& file : files_) {
    struct stat info;
    struct statvfs space;
    if (fstat(file.descriptor(), &info) != 0 || fstatvfs(file.descriptor(), &space) != 0) continue;
    if (seen.insert(info.st_dev).second) bytes += uint64_t{space.f_blocks} * space.f_frsize;
  }
  return bytes;
}

}  // namespace tierpage
