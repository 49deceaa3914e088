// The mark of an index closed in good order, kept in its lock file: how far the log then reached. A
// log that ends earlier has been cut off, or its last segments were not copied; nothing in what is
// left of it could tell. An index never closed has one from its first opening on, which says that
// there is a log.
#pragma once

#include <cstdint>
#include <filesystem>

namespace navis {

// Once the log is durable up to there. Swallows failures: without it only the check is missing.
void write_closed_mark(int fd, std::uint64_t next_lsn);

// 0 where there is no mark, or a damaged one.
std::uint64_t read_closed_mark(const std::filesystem::path& file);

}  // namespace navis
