// Walks the pieces that a page's bytes lie in. Internal to copy plans.
#pragma once

#include <cstdint>
#include <span>

namespace hicache {

/// Over extents or segments, from an offset of the page.
template <typename Piece>
class PieceCursor {
 public:
  PieceCursor(std::span<const Piece> pieces, uint64_t offset) : pieces_(pieces), inside_(offset) {
    while (inside_ >= pieces_.front().size) next();
  }
  const Piece& piece() const { return pieces_.front(); }
  uint64_t inside() const { return inside_; }
  uint64_t left() const { return pieces_.front().size - inside_; }
  void advance(uint64_t size) {
    inside_ += size;
    while (left() == 0 && pieces_.size() > 1) next();
  }

 private:
  void next() {
    inside_ -= pieces_.front().size;
    pieces_ = pieces_.subspan(1);
  }

  std::span<const Piece> pieces_;
  uint64_t inside_;
};

}  // namespace hicache
