# Defines the static library `shorthaul_uring`; include it from a project with C++20:
#
#   include(<folder of this file>/uring.cmake)         # python -c "import shorthaul.uring as u; print(u.cmake_dir())"
#   target_link_libraries(mine PRIVATE shorthaul_uring)
#
# SHORTHAUL_URING      AUTO: io_uring when liburing is here at build time; ON: an error when it is not; OFF: without
# SHORTHAUL_SANITIZE   sanitizers for it, e.g. address,undefined or thread
# SHORTHAUL_WERROR     whether its warnings are errors
include_guard(GLOBAL)
find_package(Threads REQUIRED)

set(SHORTHAUL_URING AUTO CACHE STRING "Use io_uring through liburing: AUTO, ON or OFF")
set_property(CACHE SHORTHAUL_URING PROPERTY STRINGS AUTO ON OFF)
if(NOT SHORTHAUL_URING MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "SHORTHAUL_URING is '${SHORTHAUL_URING}'; use AUTO, ON or OFF")
endif()

add_library(shorthaul_uring STATIC
  ${CMAKE_CURRENT_LIST_DIR}/src/file.cpp
  ${CMAKE_CURRENT_LIST_DIR}/src/posix_engine.cpp
  ${CMAKE_CURRENT_LIST_DIR}/src/ring.cpp
  ${CMAKE_CURRENT_LIST_DIR}/src/uring_engine.cpp)
# Hidden: two modules of one process each have their own.
set_target_properties(shorthaul_uring PROPERTIES
  POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
target_compile_features(shorthaul_uring PUBLIC cxx_std_20)
target_include_directories(shorthaul_uring PUBLIC ${CMAKE_CURRENT_LIST_DIR}/include)
target_link_libraries(shorthaul_uring PUBLIC Threads::Threads)
target_compile_options(shorthaul_uring PRIVATE -Wall -Wextra -Wpedantic -Wshadow)
if(SHORTHAUL_WERROR)
  target_compile_options(shorthaul_uring PRIVATE -Werror)
endif()
if(SHORTHAUL_SANITIZE)
  target_compile_options(shorthaul_uring PRIVATE
    -fsanitize=${SHORTHAUL_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(shorthaul_uring INTERFACE -fsanitize=${SHORTHAUL_SANITIZE})
endif()

# The archive by its name: linked statically, it is no dependency of the finished program.
if(NOT SHORTHAUL_URING STREQUAL "OFF")
  find_path(SHORTHAUL_LIBURING_INCLUDE liburing.h)
  find_library(SHORTHAUL_LIBURING_ARCHIVE NAMES liburing.a)
  mark_as_advanced(SHORTHAUL_LIBURING_INCLUDE SHORTHAUL_LIBURING_ARCHIVE)
  if(SHORTHAUL_LIBURING_INCLUDE AND SHORTHAUL_LIBURING_ARCHIVE)
    target_include_directories(shorthaul_uring SYSTEM PRIVATE ${SHORTHAUL_LIBURING_INCLUDE})
    target_link_libraries(shorthaul_uring PRIVATE ${SHORTHAUL_LIBURING_ARCHIVE})
    target_compile_definitions(shorthaul_uring PRIVATE SHORTHAUL_WITH_LIBURING)
  elseif(SHORTHAUL_URING STREQUAL "ON")
    message(FATAL_ERROR "liburing.h or liburing.a is missing; as root, run: apt-get install liburing-dev")
  else()
    message(STATUS "shorthaul_uring: no liburing (apt-get install liburing-dev); only the POSIX backend")
  endif()
endif()
