#include "core/pager/guesses.h"

namespace tierpage {

void Guesses::make(const Touch& touch) {
  const bool announced = touch.announced || expects(touch.region);
  end(touch.region);
  Region& region = memory_.region(touch.region);
  region.guessed = true;
  region.guess = next_serial_++;
  Guess& guess = by_age_[region.guess];
  guess.region = touch.region;
  guess.owner = touch.owner;
  guess.announced = announced;
  if (touch.owner.valid() && ended_.size() <= touch.owner.value) ended_.resize(touch.owner.value + 1, 0);
  guess.ends_at = ended_by(touch.owner) + touch.operators;
}

void Guesses::give_up(RegionId id) {
  const Region& region = memory_.region(id);
  if (region.guessed) by_age_.at(region.guess).given_up = true;
}

void Guesses::end(RegionId id) {
  Region& region = memory_.region(id);
  if (!region.guessed) return;
  by_age_.erase(region.guess);
  region.guessed = false;
}

bool Guesses::old(uint64_t serial) const {
  const Guess& guess = by_age_.at(serial);
  return ended_by(guess.owner) >= guess.ends_at;
}

void Guesses::view_ended(RegionId id) {
  Region& region = memory_.region(id);
  if (region.views == 0) return;  // of memory that was put in place of another's
  if (--region.views > 0) return;
  memory_.changed_in_device.note(id);
  if (memory_.config.guards_writes) end(id);
}

std::vector<RegionId> Guesses::oldest_first() const {
  std::vector<RegionId> regions;
  regions.reserve(by_age_.size());
  for (const auto& [serial, guess] : by_age_) {
    if (!guess.given_up) regions.push_back(guess.region);
  }
  return regions;
}

void Guesses::check_invariants() const {
  size_t guessed = 0;
  for (uint32_t i = 0; i < memory_.regions.size(); ++i) {
    const Region& region = memory_.regions[i];
    if (!region.guessed) continue;
    ++guessed;
    TP_ASSERT(region.state == RegionState::kLive);
    TP_ASSERT(by_age_.at(region.guess).region == RegionId(i));
  }
  TP_ASSERT(guessed == by_age_.size());
}

}  // namespace tierpage
