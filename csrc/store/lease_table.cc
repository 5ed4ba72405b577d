#include "store/lease_table.h"

#include <algorithm>

namespace hicache {

LeaseIndex LeaseTable::find(LeaseKind kind, SessionIndex session, LeaseIndex head) const {
  while (head != kNoLease && (leases_[head].session != session || leases_[head].kind != kind)) {
    head = leases_[head].page_next;
  }
  return head;
}

bool LeaseTable::holds(LeaseKind kind, SessionIndex session, LeaseIndex head) const {
  return find(kind, session, head) != kNoLease;
}

bool LeaseTable::has(LeaseKind kind, LeaseIndex head) const {
  while (head != kNoLease && leases_[head].kind != kind) head = leases_[head].page_next;
  return head != kNoLease;
}

void LeaseTable::grant(LeaseKind kind, SessionIndex session, PageIndex page, LeaseIndex* head,
                       uint64_t now_ms) {
  List& expiry_order = by_kind_[static_cast<size_t>(kind)];
  LeaseIndex lease = find(kind, session, *head);
  if (lease != kNoLease) {
    if (kind == LeaseKind::kRead) ++leases_[lease].count;
    remove(expiry_order, &Lease::in_kind, lease);
  } else {
    lease = free_;
    if (lease == kNoLease) {
      lease = static_cast<LeaseIndex>(leases_.size());
      leases_.emplace_back();
    } else {
      free_ = leases_[lease].page_next;
    }
    leases_[lease] = Lease{page, session, 0, 1, kind, *head, {}, {}};
    *head = lease;
    if (session >= by_session_.size()) by_session_.resize(session + 1);
    append(by_session_[session], &Lease::in_session, lease);
    ++count_;
  }
  leases_[lease].expires_ms = kind == LeaseKind::kWriteOut
                                  ? UINT64_MAX
                                  : now_ms + options_.ttl_ms[static_cast<size_t>(kind)];
  append(expiry_order, &Lease::in_kind, lease);
}

bool LeaseTable::release(LeaseKind kind, SessionIndex session, LeaseIndex* head) {
  const LeaseIndex lease = find(kind, session, *head);
  if (lease == kNoLease || --leases_[lease].count != 0) return false;
  end(lease, head);
  return true;
}

uint64_t LeaseTable::next_expiry_ms() const {
  uint64_t next = UINT64_MAX;
  for (const List& list : by_kind_) {
    if (list.first != kNoLease) next = std::min(next, leases_[list.first].expires_ms);
  }
  return next;
}

void LeaseTable::end(LeaseIndex lease, LeaseIndex* head) {
  Lease& ended = leases_[lease];
  LeaseIndex* link = head;
  while (*link != lease) link = &leases_[*link].page_next;
  *link = ended.page_next;
  remove(by_kind_[static_cast<size_t>(ended.kind)], &Lease::in_kind, lease);
  remove(by_session_[ended.session], &Lease::in_session, lease);
  ended.page_next = free_;
  free_ = lease;
  --count_;
}

void LeaseTable::append(List& list, Links Lease::* links, LeaseIndex lease) {
  leases_[lease].*links = Links{list.last, kNoLease};
  if (list.last == kNoLease) {
    list.first = lease;
  } else {
    (leases_[list.last].*links).next = lease;
  }
  list.last = lease;
}

void LeaseTable::remove(List& list, Links Lease::* links, LeaseIndex lease) {
  const Links own = leases_[lease].*links;
  if (own.previous == kNoLease) {
    list.first = own.next;
  } else {
    (leases_[own.previous].*links).next = own.next;
  }
  if (own.next == kNoLease) {
    list.last = own.previous;
  } else {
    (leases_[own.next].*links).previous = own.previous;
  }
}

}  // namespace hicache
