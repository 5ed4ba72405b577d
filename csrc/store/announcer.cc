#include "store/announcer.h"

#include <algorithm>
#include <cassert>
#include <utility>

namespace hicache {
namespace {

constexpr uint64_t kSequenceMax = kEpochMax;

}  // namespace

Announcer::Announcer(const Options& options, const PageStore& store, const SsdIndex* index)
    : options_(options), store_(store), index_(index) {
  assert(options_.changes_max <= kChangesMax && options_.walk_count <= kChangesMax);
}

// ---------------------------------------------------------------- what happens in the node

void Announcer::page_changed(SpaceIndex space, const Key& key) {
  // Of a namespace that was cleared nothing is known any more.
  if (!is_telling_ || !store_.is_current(space)) return;
  const auto [keys, is_new] = pending_.try_emplace(space);
  if (is_new) pending_order_.push_back(space);
  pending_count_ += keys->second.insert(key).second;
  if (pending_count_ <= options_.pending_max) return;
  ++counts_.overflows;
  begin(0);
}

void Announcer::space_ended(SpaceIndex ended, const NamespaceDigest& digest) {
  if (!is_telling_) return;
  if (const auto found = pending_.find(ended); found != pending_.end()) {
    pending_count_ -= found->second.size();
    pending_.erase(found);
  }
  ended_.insert(digest);
}

// ---------------------------------------------------------------- what the directory says

void Announcer::begin(uint64_t next_sequence) {
  pending_.clear();
  pending_order_.clear();
  pending_count_ = 0;
  pending_since_ms_ = 0;
  ended_.clear();
  batches_.clear();
  sent_count_ = 0;
  // Beyond all numbers that were used: one of those may still be on its way.
  if (next_sequence != 0) {
    last_sequence_ = std::max(last_sequence_, std::min(next_sequence, kSequenceMax) - 1);
  }
  is_telling_ = true;
  walk_ = Walk::kPool;
  walk_at_ = 0;
  ++counts_.announcements;
  begin_sequence_ = add_batch(BatchKind::kBegin, NamespaceDigest{}, 0).sequence;
}

void Announcer::forget_taken(uint64_t next_sequence) {
  while (!batches_.empty() && batches_.front().sequence < next_sequence) {
    ++counts_.batches;
    counts_.changes += batches_.front().changes.size();
    batches_.pop_front();
    if (sent_count_ != 0) --sent_count_;
  }
}

void Announcer::joined(bool must_announce, uint64_t next_sequence) {
  const uint64_t first_kept = batches_.empty() ? last_sequence_ + 1 : batches_.front().sequence;
  const bool goes_on = is_telling_ && !must_announce && next_sequence >= first_kept &&
                       next_sequence <= last_sequence_ + 1;
  if (!goes_on) return begin(next_sequence);
  forget_taken(next_sequence);
  resend();
}

void Announcer::taken(uint64_t sequence, bool must_announce, uint64_t next_sequence) {
  if (!is_telling_ || sequence < begin_sequence_) return;
  const bool is_plausible = next_sequence > sequence && next_sequence <= last_sequence_ + 1;
  if (must_announce || !is_plausible) return begin(next_sequence);
  forget_taken(next_sequence);
}

void Announcer::announce_again() {
  if (is_telling_ && walk_ == Walk::kNone && batches_.empty()) begin(0);
}

void Announcer::resend() {
  sent_count_ = 0;
}

// ---------------------------------------------------------------- batches

const Announcer::Batch* Announcer::next(uint64_t now_ms) {
  if (pending_count_ != 0 && pending_since_ms_ == 0) pending_since_ms_ = now_ms;
  while (sent_count_ == batches_.size() && batches_.size() < options_.batches_max) {
    if (!make_batch(now_ms)) break;
  }
  return sent_count_ < batches_.size() ? &batches_[sent_count_] : nullptr;
}

void Announcer::sent(uint64_t sequence) {
  if (sent_count_ < batches_.size() && batches_[sent_count_].sequence == sequence) ++sent_count_;
}

/// Few changes wait for the answer to what was sent before: then there may be more.
bool Announcer::has_pending_batch() const {
  return pending_count_ != 0 && (batches_.empty() || pending_count_ >= options_.changes_max ||
                                 (walk_ != Walk::kNone && !is_walks_turn_));
}

/// Does one step; false: there is nothing to do.
bool Announcer::make_batch(uint64_t now_ms) {
  if (!ended_.empty()) {
    // Before anything that came to the namespace since.
    add_batch(BatchKind::kClearSpace, *ended_.begin(), now_ms);
    ended_.erase(ended_.begin());
  } else if (!is_paused_ && has_pending_batch()) {
    add_pending(now_ms);
  } else if (!is_paused_ && walk_ != Walk::kNone) {
    walk(now_ms);
  } else if (wants_batch_ && batches_.empty()) {
    add_batch(BatchKind::kChanges, NamespaceDigest{}, now_ms);
  } else {
    return false;
  }
  return true;
}

Announcer::Batch& Announcer::add_batch(BatchKind kind, const NamespaceDigest& digest,
                                       uint64_t now_ms) {
  wants_batch_ = false;
  batches_.push_back({++last_sequence_, kind, digest, {}, now_ms});
  return batches_.back();
}

void Announcer::add_pending(uint64_t now_ms) {
  is_walks_turn_ = true;
  const uint64_t since_ms = pending_since_ms_;
  const SpaceIndex space = pending_order_.front();
  pending_order_.pop_front();
  const auto found = pending_.find(space);
  if (found == pending_.end()) return;  // Its namespace was cleared.
  Keys& keys = found->second;
  Batch& batch = add_batch(BatchKind::kChanges, store_.digest_of(space), since_ms);
  const size_t count = std::min(keys.size(), options_.changes_max);
  batch.changes.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    batch.changes.push_back(change_of(space, *keys.begin()));
    keys.erase(keys.begin());
  }
  pending_count_ -= count;
  end_after_ -= std::min(end_after_, count);
  if (keys.empty()) {
    pending_.erase(found);
  } else {
    pending_order_.push_back(space);
  }
  pending_since_ms_ = pending_count_ == 0 ? 0 : now_ms;
}

PageChange Announcer::change_of(const Key& key, uint64_t checksum, uint8_t tiers) {
  return {key, static_cast<uint32_t>(checksum ^ (checksum >> 32)), tiers};
}

PageChange Announcer::change_of(SpaceIndex space, const Key& key) const {
  const PageIndex in_pool = store_.find_present(space, key);
  const SsdPageIndex below = index_ == nullptr ? kNoSsdPage : index_->find(space, key);
  if (in_pool == kNoPage && below == kNoSsdPage) return change_of(key, 0, 0);
  if (in_pool == kNoPage) return change_of(key, (*index_)[below].checksum, kOnSsd);
  const uint64_t checksum = store_.record(in_pool).checksum;
  // What lies below may be what the page was before.
  const bool is_below = below != kNoSsdPage && (*index_)[below].checksum == checksum;
  return change_of(key, checksum, is_below ? kInDram | kOnSsd : kInDram);
}

// ---------------------------------------------------------------- the walk

/// Takes a step, and makes a batch of each namespace that it met: before any later change of these.
void Announcer::walk(uint64_t now_ms) {
  is_walks_turn_ = false;
  switch (walk_) {
    case Walk::kPool:
      walk_pool(options_.walk_count);
      break;
    case Walk::kSsd:
      walk_ssd(options_.walk_count);
      break;
    case Walk::kEnd:
      return end_walk(now_ms);
    case Walk::kNone:
      return;
  }
  for (auto& [space, changes] : walked_) {
    for (size_t at = 0; at < changes.size(); at += options_.changes_max) {
      const size_t count = std::min(options_.changes_max, changes.size() - at);
      const auto first = changes.begin() + static_cast<ptrdiff_t>(at);
      add_batch(BatchKind::kChanges, store_.digest_of(space), now_ms)
          .changes.assign(first, first + static_cast<ptrdiff_t>(count));
    }
  }
  walked_.clear();
}

void Announcer::walk_pool(size_t count) {
  for (; count != 0 && walk_at_ < store_.record_count(); --count) {
    const PageRecord& record = store_.record(walk_at_++);
    if (record.state != PageState::kPresent || !store_.is_current(record.space)) continue;
    walked_[record.space].push_back(change_of(record.space, record.key));
  }
  if (walk_at_ < store_.record_count()) return;
  walk_ = index_ == nullptr ? Walk::kEnd : Walk::kSsd;
  walk_at_ = 0;
  end_after_ = pending_count_;
}

void Announcer::walk_ssd(size_t count) {
  for (; count != 0 && walk_at_ < index_->record_count(); --count) {
    const SsdPageIndex page = walk_at_++;
    if (index_->is_free(page)) continue;
    const SsdPage& record = (*index_)[page];
    // What is in the pool was told already, or changed since.
    if (!store_.is_current(record.space) ||
        store_.find_present(record.space, record.key) != kNoPage) {
      continue;
    }
    walked_[record.space].push_back(change_of(record.key, record.checksum, kOnSsd));
  }
  if (walk_at_ < index_->record_count()) return;
  walk_ = Walk::kEnd;
  end_after_ = pending_count_;
}

/// Pages that moved from where the walk had not been to where it had are among the pending ones.
void Announcer::end_walk(uint64_t now_ms) {
  if (end_after_ != 0 && pending_count_ != 0) return add_pending(now_ms);
  add_batch(BatchKind::kEnd, NamespaceDigest{}, now_ms);
  walk_ = Walk::kNone;
}

// ---------------------------------------------------------------- figures

bool Announcer::is_due() const {
  if (sent_count_ < batches_.size()) return true;
  if (batches_.size() >= options_.batches_max) return false;
  return !ended_.empty() || (wants_batch_ && batches_.empty()) ||
         (!is_paused_ && (has_pending_batch() || walk_ != Walk::kNone));
}

bool Announcer::is_settled() const {
  return is_telling_ && batches_.empty() && pending_count_ == 0 && ended_.empty() &&
         walk_ == Walk::kNone;
}

uint64_t Announcer::lag_ms(uint64_t now_ms) const {
  uint64_t since_ms = pending_since_ms_;
  if (!batches_.empty()) since_ms = batches_.front().since_ms;
  return since_ms == 0 || since_ms > now_ms ? 0 : now_ms - since_ms;
}

}  // namespace hicache
