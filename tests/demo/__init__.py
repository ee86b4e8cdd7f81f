"""`script/demo`: the whole product on private servers, with a proof of each claim."""
