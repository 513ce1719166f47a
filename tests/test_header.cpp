// The same program as C++11, linked with folollm.c compiled as C.
#include "test_header.c"
