#include "closed_mark.hpp"

#include <unistd.h>

#include <fstream>

#include "crc32c.hpp"

namespace navis {

namespace {

struct Mark {
  std::uint64_t next_lsn = 0;
  std::uint32_t crc = 0;  // of next_lsn
  std::uint32_t zero = 0;
};

}  // namespace

void write_closed_mark(int fd, std::uint64_t next_lsn) {
  const Mark mark{next_lsn, crc32c(0, &next_lsn, sizeof next_lsn)};
  if (::pwrite(fd, &mark, sizeof mark, 0) == sizeof mark) ::fdatasync(fd);
}

std::uint64_t read_closed_mark(const std::filesystem::path& file) {
  Mark mark;
  std::ifstream(file, std::ios::binary).read(reinterpret_cast<char*>(&mark), sizeof mark);
  return mark.crc == crc32c(0, &mark.next_lsn, sizeof mark.next_lsn) ? mark.next_lsn : 0;
}

}  // namespace navis
