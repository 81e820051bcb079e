// Coded pages on the modelled machine: links and disk carry codes, both coders work beside them, and without codes
// nothing is otherwise than it was.
#include <gtest/gtest.h>

#include "estimate/machine.h"
#include "replay_programs.h"

namespace tierpage::estimate {
namespace {

constexpr double kRatio = 0.7;

ReplayOptions options_for(uint64_t device_bytes, uint64_t host_bytes, bool compress) {
  ReplayOptions options;
  options.pager.range_bytes = 1024 * kGiB;
  options.pager.span_bytes_min = 256 * kKiB;
  options.pager.device_bytes_max = device_bytes;
  options.pager.host_bytes_max = host_bytes;
  options.pager.compress = compress;
  options.rates.code_ratio = kRatio;
  options.check = device_bytes < kGiB;  // of many pages it takes seconds
  return options;
}

StepReport last_of(const Program& program, const ReplayOptions& options) {
  std::vector<StepReport> reports;
  const Status status = replay(program, options, &reports);
  EXPECT_TRUE(status.ok()) << status.message;
  return reports.empty() ? StepReport{} : reports.back();
}

double content_up(const StepReport& step) { return static_cast<double>(step.to_device_bytes + step.saved_up_bytes); }

TEST(CodedReplay, WeightsComeUpInThePartOfTheirTimeThatTheirCodesAreLong) {
  const Program program = read_recorded("infer-13b.txt");
  for (const uint64_t gib : {16u, 4u}) {
    const StepReport plain = last_of(program, options_for(gib * kGiB, 64 * kGiB, false));
    const StepReport coded = last_of(program, options_for(gib * kGiB, 64 * kGiB, true));
    EXPECT_EQ(plain.saved_up_bytes, 0u);
    EXPECT_NEAR(static_cast<double>(coded.to_device_bytes) / content_up(coded), kRatio, 0.01) << gib << " GiB";
    EXPECT_LE(content_up(coded), 1.05 * content_up(plain)) << gib << " GiB";
    EXPECT_LE(coded.seconds, 1.10 * kRatio * plain.seconds) << gib << " GiB";
  }
}

TEST(CodedReplay, WhatIsWrittenGoesDownAsCodes) {
  const Program program = training_program({.layers = 12});
  const ReplayOptions options = options_for(14 * 32 * kMiB, 4 * kGiB, true);
  const StepReport step = last_of(program, options);
  const double content = static_cast<double>(step.to_host_bytes + step.saved_down_bytes);
  EXPECT_GT(step.to_host_bytes, 0u);
  EXPECT_NEAR(static_cast<double>(step.to_host_bytes) / content, kRatio, 0.01);
  EXPECT_LT(step.seconds, last_of(program, options_for(14 * 32 * kMiB, 4 * kGiB, false)).seconds);
}

// What is rewritten in each step is coded where the links are waited for, and not where kernels are.
TEST(CodedReplay, RewrittenContentIsCodedWhereTheLinksAreWaitedFor) {
  for (const bool kernels_bound : {false, true}) {
    const Program program = training_program({.layers = 12, .pace = kernels_bound ? 40 : 1});
    const auto with = [&](bool compress, bool always) {
      ReplayOptions options = options_for(14 * 32 * kMiB, 4 * kGiB, compress);
      options.pager.compress_always = always;
      options.loops = 24;
      return last_of(program, options);
    };
    const StepReport plain = with(false, false), coded = with(true, false), always = with(true, true);
    EXPECT_GT(plain.to_host_bytes, 0u);
    EXPECT_GT(always.saved_down_bytes, 0u);
    EXPECT_EQ(coded.saved_down_bytes > 0, !kernels_bound);
    if (kernels_bound) {
      EXPECT_LE(coded.seconds, 1.01 * plain.seconds);
    } else {
      EXPECT_LT(coded.seconds, 0.9 * plain.seconds);
    }
  }
}

// RAM's room decides before time does.
TEST(CodedReplay, WhereRoomIsShortRewrittenContentIsCodedWhateverItCosts) {
  const Program program = training_program({.layers = 12, .pace = 40});
  ReplayOptions options = options_for(8 * 32 * kMiB, 8 * 32 * kMiB, true);
  options.pager.nvme_bytes_max = 4 * kGiB;
  options.loops = 12;
  EXPECT_GT(last_of(program, options).saved_down_bytes, 0u);
}

// A coder that is slower than the link would keep pages from leaving.
TEST(CodedReplay, RewrittenContentIsNotCodedByACoderThatIsSlowerThanTheLink) {
  const Program program = training_program({.layers = 12});
  ReplayOptions options = options_for(14 * 32 * kMiB, 4 * kGiB, true);
  options.loops = 24;
  options.rates.encode = options.rates.decode = 25e9;
  EXPECT_EQ(last_of(program, options).saved_down_bytes, 0u);
}

// More than RAM holds uncoded fits it, and of the rest the disk carries codes.
TEST(CodedReplay, RamAndDiskHoldCodes) {
  const Program program = training_program({.layers = 12});
  const auto with = [&](bool compress) {
    ReplayOptions options = options_for(8 * 32 * kMiB, 8 * 32 * kMiB, compress);
    options.pager.nvme_bytes_max = 4 * kGiB;
    options.loops = 6;
    return last_of(program, options);
  };
  const StepReport plain = with(false), coded = with(true);
  EXPECT_GT(coded.disk_read_bytes, 0u);
  EXPECT_LT(static_cast<double>(coded.disk_read_bytes), kRatio * static_cast<double>(plain.disk_read_bytes));
  EXPECT_LT(coded.seconds, plain.seconds);
}

// A page is there later, and the link goes on with the next one meanwhile.
TEST(CodedReplay, CodersWorkBesideTheLink) {
  const Program program = read_recorded("infer-13b.txt");
  const ReplayOptions fast = options_for(16 * kGiB, 64 * kGiB, true);
  ReplayOptions slow = fast;
  slow.rates.decode = slow.rates.encode = 32e9;  // 1 ms a page, while the link takes 0.4
  const StepReport quick = last_of(program, fast), late = last_of(program, slow);
  EXPECT_LE(late.seconds, 1.05 * quick.seconds);
  EXPECT_NEAR(late.to_device_busy_seconds, quick.to_device_busy_seconds, 0.05 * quick.to_device_busy_seconds);
}

// One page after the other: nothing hides the decoder.
TEST(CodedReplay, APageThatIsWaitedForIsDecodedFirst) {
  const Program program = read_recorded("infer-13b.txt");
  ReplayOptions options = options_for(4 * kGiB, 64 * kGiB, true);
  options.pager.prefetch = false;
  options.loops = 2;
  const double fast = last_of(program, options).seconds;
  options.rates.decode = 32e9;
  EXPECT_GT(last_of(program, options).seconds, 1.5 * fast);
}

TEST(CodedReplay, WhatDoesNotGetShorterMovesAsItIs) {
  const Program program = training_program({.layers = 12});
  ReplayOptions options = options_for(14 * 32 * kMiB, 4 * kGiB, true);
  options.rates.code_ratio = 1;
  const StepReport step = last_of(program, options);
  const StepReport plain = last_of(program, options_for(14 * 32 * kMiB, 4 * kGiB, false));
  EXPECT_EQ(step.saved_up_bytes + step.saved_down_bytes, 0u);
  EXPECT_NEAR(step.seconds, plain.seconds, 0.02 * plain.seconds);
}

}  // namespace
}  // namespace tierpage::estimate
