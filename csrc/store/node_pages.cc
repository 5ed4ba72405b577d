#include "store/node_pages.h"

#include <algorithm>
#include <optional>

#include "store/reply_cut.h"

namespace hicache {

Code NodePages::remove(NamespaceIndex index, const Key& key, uint64_t& ticket) {
  const Code code = store_.remove(index, key);
  const SpaceIndex space = store_.space_of(index);
  if (remote_ != nullptr) remote_->remove(space, key);
  if (ssd_ == nullptr) return code;
  const bool was_below = ssd_->contains({space, key, page_hash(space, key)});
  ticket = std::max(ticket, ssd_->remove(space, key));
  return was_below ? Code::kOk : code;
}

uint64_t NodePages::clear(NamespaceIndex index, uint64_t& ticket) {
  const SpaceIndex ended = store_.space_of(index);
  if (ssd_ == nullptr) return store_.clear(index);
  // Most pages of one tier are in the other as well.
  const uint64_t below = ssd_->log().index().page_count_of(ended);
  ticket = ssd_->clear(ended, store_.digest_of(ended));
  return std::max(store_.clear(index), below);
}

void NodePages::release(SessionIndex session, std::span<const PageRef> refs, uint64_t now_ms) {
  store_.release(session, refs, now_ms);  // It ignores those that are not its own.
  if (ssd_ == nullptr) return;
  for (const PageRef& ref : refs) {
    if (SsdTier::is_ours(ref)) ssd_->release(session, ref);
  }
}

void NodePages::report_corrupt(std::span<const PageRef> refs) {
  for (const PageRef& ref : refs) {
    if (!SsdTier::is_ours(ref)) {
      if (ssd_ != nullptr && store_.is_present(ref)) ssd_->report_corrupt(store_.record(ref.page));
      store_.report_corrupt(ref);
    } else if (ssd_ != nullptr) {
      ssd_->report_corrupt(ref);
    }
  }
}

// ---------------------------------------------------------------- for peers

void NodePages::lookup_for_peer(SessionIndex session, const PeerKeysRequest& request,
                                uint64_t now_ms, std::vector<Code>& codes) {
  const std::optional<NamespaceIndex> index = store_.find_namespace(request.digest);
  if (!index) {
    codes.assign(request.keys.size(), Code::kNotFound);
    return;
  }
  const PageStore::LookupFlags flags{(request.flags & kLookupLease) != 0,
                                     (request.flags & kLookupPrefix) != 0};
  store_.lookup(session, *index, request.keys, flags, now_ms, codes);
}

void NodePages::remove_for_peer(const PeerKeysRequest& request, std::vector<Code>& codes) {
  const std::optional<NamespaceIndex> index = store_.find_namespace(request.digest);
  codes.assign(request.keys.size(), Code::kNotFound);
  uint64_t ticket = 0;  // A removal elsewhere waits for no disk here.
  for (size_t i = 0; index && i < codes.size(); ++i) {
    codes[i] = remove(*index, request.keys[i], ticket);
  }
}

void NodePages::copy_for_peer(NamespaceIndex index, const PeerCopyRequest& request, uint64_t now_ms,
                              std::vector<Code>& codes) {
  codes.assign(request.keys.size(), Code::kAlreadyExists);
  const std::vector<uint32_t> missing = store_.missing(index, request.keys, now_ms);
  Code code = Code::kOk;
  if (remote_ == nullptr) {
    code = Code::kUnavailable;
  } else if (!request.may_evict && request.size_bytes > room_for_copies(index)) {
    code = Code::kNoSpace;
  } else if (!missing.empty()) {
    const SpaceIndex space = store_.space_of(index);
    RemoteTier::Question question{.session = RemoteTier::kNobody,
                                  .space = space,
                                  .is_prefix = false,
                                  .leases = false,
                                  .keys = {},
                                  .parents = {}};
    for (const uint32_t i : missing) {
      const bool has_parent = request.parents[i] != kNoParent;
      question.keys.push_back(request.keys[i]);
      question.parents.push_back(has_parent ? page_hash(space, request.parents[i]) : 0);
    }
    if (!remote_->begin_copy(std::move(question), now_ms)) code = Code::kBusy;
  }
  for (const uint32_t i : missing) codes[i] = code;
}

/// Without evicting what anybody may ask for.
uint64_t NodePages::room_for_copies(NamespaceIndex index) const {
  const uint64_t room = std::min(store_.reachable_free_bytes() + store_.spare_bytes(),
                                 store_.quota_left_bytes(index));
  return room - std::min(room, remote_->expected_bytes());
}

void NodePages::lease_for_peer(SessionIndex session, const PeerKeysRequest& request,
                               uint64_t now_ms, WireWriter& writer) {
  std::vector<PageStore::Location> locations(request.keys.size());
  const std::optional<NamespaceIndex> index = store_.find_namespace(request.digest);
  if (!index) return encode_locations(writer, locations);
  const SpaceIndex space = store_.space_of(*index);
  // A peer cannot read files: what lies in one comes up, and is asked for again.
  std::vector<Key> in_pool;
  std::vector<size_t> numbers;
  for (size_t i = 0; i < request.keys.size(); ++i) {
    const Key& key = request.keys[i];
    const bool is_below =
        ssd_ != nullptr && !store_.has_hash(page_hash(space, key)) && ssd_->fetch(space, key);
    if (is_below) {
      locations[i].code = Code::kBusy;
      continue;
    }
    in_pool.push_back(key);
    numbers.push_back(i);
  }
  store_.lease(session, *index, in_pool, true, now_ms, locations_);
  std::vector<PageRef> unreadable;
  for (size_t n = 0; n < numbers.size(); ++n) {
    PageStore::Location& location = locations[numbers[n]];
    location = locations_[n];
    if (location.code != Code::kOk) continue;
    if (location.device != 0) {
      unreadable.push_back(location.ref);
      location = PageStore::Location();
      location.code = Code::kBusy;
      continue;
    }
    ++counts_.peer_leased_pages;
    counts_.peer_leased_bytes += location.size;
  }
  const std::vector<PageRef> cut = cut_to_frame(locations, kPeerReplySizeMax);
  encode_locations(writer, locations);
  release(session, cut, now_ms);
  release(session, unreadable, now_ms);
}

// ---------------------------------------------------------------- for clients

RemoteTier::Question NodePages::question_of(SessionIndex session, NamespaceIndex index,
                                            std::span<const Key> keys, uint8_t flags,
                                            uint64_t now_ms, std::vector<uint32_t>& missing) const {
  missing = store_.missing(index, keys, now_ms);
  RemoteTier::Question question{.session = session,
                                .space = store_.space_of(index),
                                .is_prefix = (flags & kLookupPrefix) != 0,
                                .leases = (flags & kLookupLease) != 0,
                                .keys = {},
                                .parents = {}};
  for (const uint32_t i : missing) {
    question.keys.push_back(keys[i]);
    const bool has_parent = question.is_prefix && i != 0;
    question.parents.push_back(has_parent ? page_hash(question.space, keys[i - 1]) : 0);
  }
  return question;
}

void NodePages::lookup(SessionIndex session, NamespaceIndex index, std::span<const Key> keys,
                       uint8_t flags, std::span<const uint32_t> missing,
                       std::span<const uint8_t> found, uint64_t now_ms, std::vector<Code>& codes) {
  const bool is_prefix = (flags & kLookupPrefix) != 0;
  std::vector<uint8_t> is_remote(keys.size());
  size_t reach = keys.size();
  for (size_t n = 0; n < missing.size(); ++n) {
    const uint32_t i = missing[n];
    is_remote[i] = n < found.size() && found[n] != 0;
    if (is_remote[i] || !is_prefix) continue;
    reach = i + size_t{1};
    break;
  }
  store_.lookup(session, index, keys.first(reach), {(flags & kLookupLease) != 0, false}, now_ms,
                codes);
  bool is_chained = true;
  for (size_t i = 0; i < reach; ++i) {
    if (codes[i] == Code::kNotFound && is_remote[i]) codes[i] = Code::kOk;
    if (is_prefix && !is_chained) codes[i] = Code::kNotFound;
    is_chained = is_chained && codes[i] == Code::kOk;
  }
  codes.resize(keys.size(), Code::kNotFound);
}

}  // namespace hicache
