"""`script/demo`: the whole product on private servers, each claim proved before your eyes."""
