// Runs the cases of all *_test.cc of the ring half.
#include "check.h"

int main(int argc, char** argv) { return check::run(argc, argv); }
