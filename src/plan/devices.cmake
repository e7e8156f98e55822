# The device models as texts in the executable. devices_embed(VAR) sets VAR to the .c files that hold them (device_shipped.c lists
# them by name).
set(DEVICES_DIR ${CMAKE_CURRENT_LIST_DIR}/devices)
function(devices_embed var)
  file(GLOB models CONFIGURE_DEPENDS ${DEVICES_DIR}/*.json)
  set(made "")
  foreach(in ${models})
    get_filename_component(name ${in} NAME_WE)
    set(out ${CMAKE_CURRENT_BINARY_DIR}/device_${name}.c)
    add_custom_command(OUTPUT ${out}
      COMMAND ${CMAKE_COMMAND} -DIN=${in} -DOUT=${out} -P ${CMAKE_SOURCE_DIR}/scripts/embed.cmake
      DEPENDS ${in} ${CMAKE_SOURCE_DIR}/scripts/embed.cmake)
    list(APPEND made ${out})
  endforeach()
  set(${var} ${made} PARENT_SCOPE)
endfunction()
