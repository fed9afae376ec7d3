//! A second reader of JSON patches (RFC 6902), as far as `admit` writes them: `add` and `replace`.

use serde_json::Value;

/// `object` with the operations applied.
///
/// # Errors
/// The operation that does not apply, and why.
pub(super) fn apply(object: &Value, operations: &Value) -> Result<Value, String> {
    let mut object = object.clone();
    for operation in operations.as_array().ok_or("a patch is a list")? {
        let path = operation["path"].as_str().ok_or_else(|| format!("{operation}: no path"))?;
        let value = operation.get("value").ok_or_else(|| format!("{operation}: no value"))?.clone();
        let (parent, last) = path.rsplit_once('/').ok_or_else(|| format!("{operation}: not below the root"))?;
        let last = last.replace("~1", "/").replace("~0", "~");
        let parent = object.pointer_mut(parent).ok_or_else(|| format!("{operation}: no parent"))?;
        match (operation["op"].as_str(), parent) {
            (Some("add"), Value::Object(fields)) => {
                fields.insert(last, value);
            }
            (Some("add"), Value::Array(items)) if last == "-" => items.push(value),
            (Some("add"), Value::Array(items)) => {
                let index: usize = last.parse().map_err(|_| format!("{operation}: no index"))?;
                if index > items.len() {
                    return Err(format!("{operation}: beyond the end"));
                }
                items.insert(index, value);
            }
            (Some("replace"), Value::Object(fields)) => {
                *fields.get_mut(&last).ok_or_else(|| format!("{operation}: nothing to replace"))? = value;
            }
            (Some("replace"), Value::Array(items)) => {
                let index: usize = last.parse().map_err(|_| format!("{operation}: no index"))?;
                *items.get_mut(index).ok_or_else(|| format!("{operation}: nothing to replace"))? = value;
            }
            _ => return Err(format!("{operation}: neither add nor replace, or no container")),
        }
    }
    Ok(object)
}
